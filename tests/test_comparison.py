import json

import pytest
import torch
from jsonargparse import auto_cli

from tracelib.comparison import compare
from tracelib.retrieval.per_query import PerQuery, write_per_query
from tracelib.retrieval.protocol import Protocol
from tracelib.retrieval.runs import ResultRow, write_results

SIZE = 40
HASHES = {"qrels/test/mbeir_a_task0_test_qrels.txt": "1" * 64, "query/test/a.jsonl": "2" * 64}


def write_gate(folder, run="a", gate="never", ranks=(1, 0), speed=2.0, **changes):
    """Write what an evaluation leaves of one gate: half of 40 queries have either rank."""
    protocol = {
        "split": "test",
        "prompt_policy": "fixed",
        "prompt_seed": None,
        "ks": (1, 5),
        "search_depth": 50,
        "data_hashes": HASHES,
    } | changes
    rows = [ResultRow(run, gate, "all", "local", "all", "think_rate", 0.5)]
    if speed is not None:
        rows.append(ResultRow(run, gate, "all", "local", "all", "queries_per_second", speed))
    provenance = {"gate": gate, "dtype": "float32", "git_revision": "f" * 40}
    write_results(folder / "results.json", rows, provenance | Protocol(**protocol).to_provenance())
    ranked = torch.tensor(ranks).repeat_interleave(SIZE // 2)
    queries = PerQuery(
        [f"0:{i}" for i in range(SIZE)],
        ["a_task0"] * SIZE,
        torch.zeros(SIZE),
        torch.full((SIZE,), -1),
        torch.ones(SIZE),
        {"local": ranked, "union": torch.zeros(SIZE)},
        torch.arange(SIZE) % 2 == 0,
        torch.ones(SIZE),
        torch.full((SIZE,), torch.nan),
        torch.zeros(SIZE, dtype=torch.bool),
    )
    write_per_query(folder / "per_query.parquet", queries)


@pytest.fixture
def runs(tmp_path):
    """Two runs: one of a single gate, one of two whose recipe says `always`."""
    a, b = tmp_path / "a", tmp_path / "b"
    write_gate(a / "evaluation" / "never")
    for gate, ranks in (("never", (1, 0)), ("always", (1, 2))):
        write_gate(b / "evaluation" / gate, "b", gate, ranks, speed=None)
    rows = [ResultRow("b", "always", "all", "local", "all", "think_rate", 1.0)]
    write_results(b / "evaluation" / "results.json", rows, {"gate": "always"})
    return a, b


def run_compare(*args, **options):
    auto_cli(
        compare,
        args=[*map(str, args), *(f"--{name}={value}" for name, value in options.items())],
        as_positional=True,
    )


def test_prints_and_writes_the_difference(runs, tmp_path, capsys):
    target = tmp_path / "deep" / "compare.json"
    run_compare(*runs, json_file=target, num_resamples=500)
    content = json.loads(target.read_text())
    local, mean, union, _ = content["rows"]
    assert (local["column"], local["pool"], union["pool"]) == ("a_task0", "local", "union")
    assert (local["value_a"], local["value_b"], local["difference"]) == (0.5, 1.0, 0.5)
    assert 0.3 < local["low"] < 0.5 < local["high"] < 0.7
    assert local["p_value"] == pytest.approx(1 / 501)
    assert mean == local | {"column": "all"}
    assert (union["difference"], union["p_value"]) == (0, 1)
    assert (content["a"]["run"], content["a"]["gate"]) == ("a", "never")
    assert (content["b"]["run"], content["b"]["gate"]) == ("b", "always")
    assert (content["a"]["queries_per_second"], content["b"]["queries_per_second"]) == (2.0, None)
    assert content["protocol"]["data_hashes"] == HASHES
    assert (content["metric"], content["seed"], content["num_resamples"]) == ("headline", 0, 500)
    text = capsys.readouterr().out
    assert text.count("mean over columns") == 2
    assert "+0.5000" in text
    assert "0.0020" in text
    assert str(tmp_path) not in target.read_text()


def test_a_gate_is_named_or_its_folder(runs, tmp_path):
    a, b = runs
    files = [tmp_path / name for name in ("option.json", "folder.json")]
    run_compare(a, b, gate_b="never", json_file=files[0])
    run_compare(a / "evaluation" / "never", b / "evaluation" / "never", json_file=files[1])
    assert files[0].read_text() == files[1].read_text()
    assert json.loads(files[0].read_text())["rows"][0]["difference"] == 0


def test_val_has_its_own_folder(runs, tmp_path):
    a, b = runs
    for run, ranks in ((a, (0, 0)), (b, (7, 0))):
        write_gate(run / "evaluation_val" / "never", ranks=ranks, split="val")
    run_compare(a, b, split="val", metric="recall@10", json_file=tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["difference"] == 0.5
    gates = (run / "evaluation_val" / "never" for run in (a, b))
    run_compare(*gates, metric="recall@10", json_file=tmp_path / "b.json")
    assert (tmp_path / "b.json").read_text() == (tmp_path / "a.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_policy": "random", "prompt_seed": 3}, "prompt_seed is None in A and 3 in B"),
        ({"ks": (1, 10)}, r"ks is \(1, 5\) in A and \(1, 10\) in B"),
        ({"split": "val"}, "split is 'test' in A and 'val' in B"),
        (
            {"data_hashes": HASHES | {"qrels/test/mbeir_a_task0_test_qrels.txt": "3" * 64}},
            "qrels/test/mbeir_a_task0_test_qrels.txt has other contents",
        ),
        ({"data_hashes": {}}, "query/test/a.jsonl was read for A only"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, changes, message):
    a, b = runs
    write_gate(b / "evaluation" / "always", "b", "always", **changes)
    with pytest.raises(ValueError, match=f"cannot be compared:(.|\n)*{message}"):
        compare(a, b)


def test_what_is_missing_is_named(runs, tmp_path):
    a, b = runs
    with pytest.raises(ValueError, match=r"nowhere/evaluation holds no evaluation: run python -m"):
        compare(a, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has gates \['always', 'never'\], not 'head'"):
        compare(a, b, gate_b="head")
    with pytest.raises(ValueError, match="is of another gate than --gate_a head"):
        compare(a / "evaluation" / "never", b, gate_a="head")
    with pytest.raises(ValueError, match="metric is 'recall@51'"):
        compare(a, b, metric="recall@51")
    (b / "evaluation" / "results.json").unlink()
    with pytest.raises(ValueError, match="choose one by --gate_b"):
        compare(a, b)


def test_results_of_several_gates_are_no_gate(runs):
    a, b = runs
    rows = [ResultRow("b", gate, "all", "local", "all", "mrr", 0.5) for gate in ("never", "head")]
    write_results(b / "evaluation" / "always" / "results.json", rows, {})
    with pytest.raises(ValueError, match="several runs or gates"):
        compare(a, b)
