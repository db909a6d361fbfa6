"""Builds end to end: whole, again, edited and phase by phase."""

import shutil

import pytest

from tests.construction.tiny_build import (
    NUM_QUERIES,
    check_journals,
    count_rows,
    read_output,
    read_report,
    serve,
    write_build,
)
from tests.tiny import cut_scenes
from tracelib.cli import main
from tracelib.data.mbeir import MBEIRReader

pytest.importorskip("openai")


@pytest.fixture(scope="module")
def url():
    with serve() as url:
        yield url


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("build") / "scenes")


def make_folder(path):
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def built(root, url, tmp_path_factory):
    """Folder of a build that is through, and its arguments."""
    folder = make_folder(tmp_path_factory.mktemp("whole") / "built")
    args = write_build(folder, root, url)
    main(["cot", "build", *args])
    return folder, args


def test_a_build_ends_in_rows_and_a_report(built, root):
    folder, _ = built
    output = read_output(root, folder)
    rows = output["mbeir_scenes_train_rationales.parquet"]
    counts = check_journals(folder)
    assert counts["assess"] == {"done": 2 * NUM_QUERIES}
    assert set(counts["generate"]) == {"done"}
    assert counts["filter"]["dropped"] > 0
    assert counts["verify"]["dropped"] > 0
    direct = [row for row in rows if row["difficulty"] == 0]
    reasoned = [row for row in rows if row["difficulty"] == 1]
    assert direct
    assert reasoned
    assert len({row["qid"] for row in rows}) == len(rows) <= NUM_QUERIES
    assert 2 * (NUM_QUERIES - len(direct)) == counts["generate"]["done"]
    assert all(row["reasoning"] and row["answer"] for row in reasoned)
    assert all(row["cot_conf"] >= 0.7 for row in reasoned)
    assert not any(row["reasoning"] or row["answer"] for row in direct)
    answered = {row["qid"] for row in rows}
    dropped = {row["qid"] for row in output["dropped.parquet"] if row["rule"] == "unanswered"}
    assert len(answered | dropped) == NUM_QUERIES
    assert not answered & dropped
    report = read_report(folder)
    assert report["provenance"]["config"]["generate"]["num_samples"] == 2
    assert report["summary"]["cost"] > 0
    assert (folder / "work" / "sample_sheet.html").stat().st_size > 1000


def test_fit_takes_the_rows(built, root):
    folder, _ = built
    table = MBEIRReader(root, rationale_folder=folder.name).read_rationales("train")
    rows = read_output(root, folder)["mbeir_scenes_train_rationales.parquet"]
    assert len(table) == len(rows)


def run_again(built, *words):
    """Run again with other options; return how many rows each phase wrote."""
    folder, args = built
    before = count_rows(folder)
    main(["cot", words[0], *args, *words[1:]])
    return {phase: number - before[phase] for phase, number in count_rows(folder).items()}


def test_only_what_changed_is_computed_again(built, root, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "edited")
    built = folder, [*built[1], f"--work={folder / 'work'}", "--output.folder=edited"]
    nothing = dict.fromkeys(("assess", "generate", "filter", "verify"), 0)
    rows = count_rows(folder)
    assert run_again(built, "build") == nothing
    first = read_output(root, folder)
    assert first == read_output(root, folder.parent / "built")
    for phase in ("assess", "generate", "filter"):
        assert run_again(built, phase, "--max_attempts=2") == nothing
    # Another threshold is held against the replies that are there, without a teacher.
    nobody = "--verify.verifier.init_args.teacher.init_args.base_url=http://127.0.0.1:9/v1"
    stricter = run_again(built, "filter", "--verify.min_confidence=0.9", nobody)
    assert stricter == nothing | {"verify": rows["verify"]}
    assert run_again(built, "filter") == nothing | {"verify": rows["verify"]}
    longer = run_again(built, "filter", "--rules.min_answer_tokens=3")
    assert longer == nothing | {"filter": rows["filter"]}
    assert run_again(built, "filter") == nothing | {"filter": rows["filter"]}
    more = f"--data.max_queries={NUM_QUERIES + 8}"
    assert run_again(built, "assess", more) == nothing | {"assess": 16}
    assert run_again(built, "generate", more)["generate"] in range(4, 17)
    hotter = run_again(built, "generate", "--generate.temperature=0.9")
    assert hotter == nothing | {"generate": rows["generate"]}
    # What another recipe wrote is neither put out nor counted as this one's.
    assert run_again(built, "report", "--generate.temperature=0.8") == nothing
    output = read_output(root, folder)["mbeir_scenes_train_rationales.parquet"]
    assert output
    assert not any(row["reasoning"] for row in output)
    states = read_report(folder)["summary"]["datasets"]["scenes"]["states"]["generate"]
    assert {state: n for state, n in states.items() if n} == {"stale": rows["generate"]}


def test_phases_run_one_by_one_as_a_build_does(built, root, tmp_path, url):
    folder = make_folder(tmp_path / "apart")
    args = write_build(folder, root, url)
    for phase, filled in (("assess", 1), ("generate", 2), ("filter", 4), ("report", 4)):
        assert not read_output(root, folder)
        main(["cot", phase, *args])
        assert sum(number > 0 for number in count_rows(folder).values()) == filled
    assert read_output(root, folder) == read_output(root, built[0])
