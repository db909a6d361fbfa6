"""Each stage counts the samples that are left, and those that are the reference's."""

import json
import shutil

import pytest

from tests.construction.sample_rows import append
from tracelib.construction.journal.work_folder import Journal
from tracelib.data.layout import Layout
from tracelib.data.mbeir import MBEIRReader
from tracelib.data.rationales import write_rationales

TEXT = "<reasoning>{}</reasoning><answer>{}</answer>"


@pytest.fixture
def build(tiny_scenes, tmp_path):
    """Root and work folder of a build: three queries, two samples each, one of them wrong."""
    root, work = tmp_path / "scenes", tmp_path / "work"
    shutil.copytree(tiny_scenes, root, ignore=shutil.ignore_patterns("mbeir_images"))
    rows = list(MBEIRReader(root).read_rationales("train"))
    first, second, third = [row for row in rows if row.reasoning][:3]
    with Journal(work) as journal:
        for row, reasoning, answer in (
            (first, first.reasoning, first.answer),
            (second, "0 a guess.", second.answer),
            (third, third.reasoning, "another"),
        ):
            for sample, text in enumerate((TEXT.format(reasoning, answer), "no tags")):
                append(journal, "generate", row.query_id, sample, {"text": text})
            append(journal, "filter", row.query_id, 0, {"violations": []})
            append(journal, "filter", row.query_id, 1, {"violations": ["x"]}, "dropped")
        for row in (first, second):
            append(journal, "verify", row.query_id, 0, {"confidence": 1.0})
        append(journal, "verify", third.query_id, 0, {"confidence": 0.0}, "dropped")
        append(journal, "generate", third.query_id, 1, {}, "quarantined", "truncated")
    built = [first, *(row for row in rows if row.difficulty == 0)]
    (root / "rationales_cot").mkdir()
    write_rationales(Layout(root, "rationales_cot").rationales("scenes", "train"), built)
    return root, work


def test_each_stage_is_held_against_the_reference(build, load_script, tmp_path, capsys):
    root, work = build
    output = tmp_path / "exactness.json"
    report = load_script("exactness").compare_with_reference(work, root, output=output)
    assert {
        name: (v["num_samples"], v["num_queries"], v["exact"], v["right_answer"])
        for name, v in report["stages"].items()
    } == {
        "asked for": (6, 3, pytest.approx(1 / 6), pytest.approx(2 / 6)),
        "written": (5, 3, pytest.approx(1 / 5), pytest.approx(2 / 5)),
        "passed the rules": (3, 3, pytest.approx(1 / 3), pytest.approx(2 / 3)),
        "passed the verifier": (2, 2, 0.5, 1.0),
        "built rows": (1, 1, 1.0, 1.0),
    }
    assert json.loads(output.read_text())["direct_rows"] == report["direct_rows"] > 0
    assert "passed the rules" in capsys.readouterr().out
