import dataclasses
import json
import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch

from tracelib.retrieval.columns import MBEIR_COLUMNS
from tracelib.retrieval.runs import (
    ResultRow,
    collect_provenance,
    mean_over_columns,
    read_git_state,
    read_results,
    write_results,
    write_results_tsv,
    write_run_file,
)

HEADER = "TaskID\tTask\tDataset\tSplit\tMetric\tCandPool\tValue\tUnionPool\tUnionValue"


def make_row(column="oven_task6", pool="local", metric="recall@1", value=1 / 3, **changes):
    row = ResultRow("direct", "never", column, pool, "all", metric, value)
    return dataclasses.replace(row, **changes)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_mean_keeps_metrics_and_subsets_apart():
    rows = [
        make_row("cirr_task7", value=0.0),
        make_row("oven_task6", value=1.0),
        make_row("oven_task6", value=0.2, metric="recall@5"),
        make_row("oven_task6", value=0.4, subset="hard"),
        make_row("oven_task6", value=0.6, gate="always"),
    ]
    assert [row.value for row in mean_over_columns(rows)] == [0.5, 0.2, 0.4, 0.6]


def test_mean_refuses_to_count_twice():
    with pytest.raises(ValueError, match="would count twice"):
        mean_over_columns([make_row(), make_row()])
    with pytest.raises(ValueError, match="would count twice"):
        mean_over_columns([make_row(), *mean_over_columns([make_row()])])


def test_run_file_lines(tmp_path):
    path = tmp_path / "run_files" / "mbeir_oven_task6_single_pool_test_k4_run.txt"
    ids = [["5:1", "5:3", "5:4", "5:2"]]
    write_run_file(path, ["5:1"], ids, torch.tensor([[0.8, 0.6, 0.48, 0.0]]), task_id=6)
    assert path.read_text() == (
        "5:1 Q0 5:1 1 0.8 mbeir_oven_task6_single_pool_test_k4 6\n"
        "5:1 Q0 5:3 2 0.6 mbeir_oven_task6_single_pool_test_k4 6\n"
        "5:1 Q0 5:4 3 0.48 mbeir_oven_task6_single_pool_test_k4 6\n"
        "5:1 Q0 5:2 4 0.0 mbeir_oven_task6_single_pool_test_k4 6\n"
    )


def test_run_file_of_several_queries_reads_back_to_the_last_bit(tmp_path):
    scores = torch.rand(3, 4).sort(dim=1, descending=True).values
    ids = [[f"9:{4 * q + c}" for c in range(4)] for q in range(3)]
    write_run_file(tmp_path / "a_run.txt", ["9:1", "9:2", "9:3"], ids, scores, task_id=0)
    fields = [line.split() for line in (tmp_path / "a_run.txt").read_text().splitlines()]
    assert [row[0] for row in fields] == ["9:1"] * 4 + ["9:2"] * 4 + ["9:3"] * 4
    assert [row[2] for row in fields] == [i for row in ids for i in row]
    assert [int(row[3]) for row in fields] == [1, 2, 3, 4] * 3
    assert torch.equal(torch.tensor([float(row[4]) for row in fields]).reshape(3, 4), scores)
    assert {len(row) for row in fields} == {7}


@pytest.mark.parametrize(
    ("name", "ids", "shape", "message"),
    [
        ("a.txt", [["5:1"]], (1, 1), "must be named <run id>_run.txt"),
        ("a_run.txt", [["5:1"]], (1, 2), r"rankings of length \[1\] and scores \(1, 2\)"),
        ("a_run.txt", [["5:1"], ["5:1"]], (1, 1), "1 query ids, 2 rankings"),
        ("a_run.txt", [["5:1"]], (2, 1), r"scores \(2, 1\)"),
    ],
)
def test_run_file_that_does_not_fit_is_refused(tmp_path, name, ids, shape, message):
    with pytest.raises(ValueError, match=message):
        write_run_file(tmp_path / name, ["5:1"], ids, torch.zeros(shape), task_id=6)
    assert files_in(tmp_path) == []


def test_table_row(tmp_path):
    write_results_tsv(tmp_path / "a.tsv", [make_row(), make_row(pool="union")], "test")
    assert (tmp_path / "a.tsv").read_text() == (
        f"{HEADER}\n"
        "6\timage,text -> text\toven_task6\ttest\tRecall@1\toven_task6\t0.3333\tunion\t0.3333\n"
    )


def test_table_keeps_metrics_of_one_pool(tmp_path):
    rows = [make_row(pool="union", value=0.5), make_row(metric="recall@5", value=1.0)]
    write_results_tsv(tmp_path / "a.tsv", rows, "test")
    lines = [line.split("\t") for line in (tmp_path / "a.tsv").read_text().splitlines()]
    assert [len(line) for line in lines] == [9, 9, 9]
    assert lines[1][4:] == ["Recall@1", "", "", "union", "0.5000"]
    assert lines[2][4:] == ["Recall@5", "oven_task6", "1.0000", "", ""]


def test_table_is_sorted_by_task_and_holds_recall_of_columns_only(tmp_path):
    rows = [make_row(column) for column in reversed(MBEIR_COLUMNS)]
    rows += [make_row("all"), make_row(subset="hard"), make_row(metric="think_rate")]
    write_results_tsv(tmp_path / "a.tsv", rows, "val")
    lines = [line.split("\t") for line in (tmp_path / "a.tsv").read_text().splitlines()[1:]]
    assert [line[2] for line in lines] == list(MBEIR_COLUMNS)
    assert [line[0] for line in lines] == [column[-1] for column in MBEIR_COLUMNS]
    pools = {line[2]: line[5] for line in lines}
    assert pools["mscoco_task3"] == "mscoco_task3_val"  # its pools differ by split
    assert pools["cirr_task7"] == "cirr_task7"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([make_row(), make_row(gate="always")], "one run and gate"),
        ([make_row(), make_row()], "given twice"),
        ([make_row(pool="global")], "no place here"),
        ([make_row("oven_task5")], "'oven_task5' must end in _task<id>"),
        ([make_row("oven")], "'oven' must end in _task<id>"),
    ],
)
def test_table_refuses_what_it_cannot_show(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_results_tsv(tmp_path / "a.tsv", rows, "test")


def test_results_read_back(tmp_path):
    rows = [make_row(), make_row(pool="union", value=0.1 + 0.2)]
    provenance = {"dtype": "float32", "config": {"prompt": "é"}}
    write_results(tmp_path / "deep" / "metrics.json", rows, provenance)
    assert read_results(tmp_path / "deep" / "metrics.json") == (rows, provenance)
    content = json.loads((tmp_path / "deep" / "metrics.json").read_text(encoding="utf-8"))
    assert list(content) == ["provenance", "rows"]
    fields = ["run", "gate", "column", "pool", "subset", "metric", "value"]
    assert [list(row) for row in content["rows"]] == [fields, fields]


def test_failed_write_leaves_the_old_results(tmp_path):
    path = tmp_path / "metrics.json"
    write_results(path, [make_row()], {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"value=nan\) is not finite"):
        write_results(path, [make_row(value=float("nan"))], {})
    with pytest.raises(UnicodeEncodeError):  # fails half-way, while the file is being written
        write_results(path, [make_row(run="\ud800")], {})
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["metrics.json"]


def test_write_replaces_the_file_in_one_step(tmp_path):
    write_results(tmp_path / "metrics.json", [make_row()], {})
    before = (tmp_path / "metrics.json").read_bytes()
    os.link(tmp_path / "metrics.json", tmp_path / "reader")  # one who has the old file open
    write_results(tmp_path / "metrics.json", [make_row(value=1.0)], {})
    assert (tmp_path / "reader").read_bytes() == before
    assert read_results(tmp_path / "metrics.json")[0] == [make_row(value=1.0)]


@pytest.mark.parametrize("content", ["[]", "{", '{"provenance": {}, "rows": [{"run": "a"}]}'])
def test_other_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is no results file"):
        read_results(tmp_path / "other.json")


def test_provenance_names_versions_and_no_host(tmp_path):
    home = Path.home()
    config = {
        "data": {"root": str(tmp_path / "scenes"), "folders": [home / "data", "~/more/images"]},
        "backbone": Path("runs/direct"),
        "steps": 3,
        "lr": 1e-3,
        "gate": None,
    }
    hashes = {"query/test.jsonl": "abc"}
    found = collect_provenance(config, hashes, prompt_policy="first", dtype="bfloat16")
    assert found["config"] == {
        "data": {"root": "scenes", "folders": ["data", "images"]},
        "backbone": "runs/direct",
        "steps": 3,
        "lr": 1e-3,
        "gate": None,
    }
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == torch.__version__
    assert found["data_hashes"] == hashes
    assert (found["prompt_policy"], found["dtype"]) == ("first", "bfloat16")
    age = datetime.now(timezone.utc) - datetime.fromisoformat(found["created_utc"])
    assert 0 <= age.total_seconds() < 60
    text = json.dumps(found)
    assert str(tmp_path) not in text
    assert str(home) + os.sep not in text


@pytest.fixture
def checkout(tmp_path):
    """A git repository whose only commit holds `package/__init__.py`."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return package


def test_git_state_of_a_checkout(checkout):
    revision, is_dirty = read_git_state(checkout)
    assert len(revision) == 40
    assert is_dirty is False
    (checkout.parent / "notes.md").write_text("outside the package")
    assert read_git_state(checkout) == (revision, False)
    (checkout / "new.py").write_text("")
    assert read_git_state(checkout) == (revision, True)


def test_git_state_without_git(checkout, tmp_path_factory):
    assert read_git_state(tmp_path_factory.mktemp("plain")) == (None, None)
    installed = checkout.parent / "venv"  # untracked, though inside a checkout
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    assert read_git_state(installed) == (None, None)
