"""Calibrating a run and evaluating it under a budget, through the command line."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.reference.gate_curves import trace_slowly
from tests.tiny import cut_scenes, write_recipe
from tracelib.calibration import read_labels
from tracelib.cli import main
from tracelib.data.jsonl import DataError, write_rows
from tracelib.metrics.calibration import build_calibration, read_calibration
from tracelib.models.gates import GateFeatures, HeadGate
from tracelib.retrieval.per_query import read_per_query
from tracelib.retrieval.runs import read_results

TIMES = {"direct_seconds", "thought_seconds"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="module")
def args(tiny_scenes, tiny_backbone, folder):
    return write_recipe(folder, cut_scenes(tiny_scenes, folder / "scenes"), tiny_backbone)


@pytest.fixture(scope="module")
def fitted(args, folder):
    main(["fit", *args])
    return folder / "tiny" / "version_0"


@pytest.fixture
def run(fitted, tmp_path):
    """A copy of the run, with nothing found out about it yet."""
    return shutil.copytree(fitted, tmp_path / "version_0")


def calibrate(run, *options):
    main(["calibrate", f"--run={run}", f"--store_dir={run.parent / 'store'}", *options])
    return json.loads((run / "calibration.json").read_text())


def evaluate(run, *options):
    store = f"--store_dir={run.parent / 'store'}"
    main(
        ["evaluate", f"--run={run}", f"--runs_folder={run.parent}", store, "--split=val", *options]
    )
    return run / "evaluation_val"


def read_probabilities(run, gate="always"):
    return read_per_query(run / "evaluation_val" / gate / "per_query.parquet").think_probability


def test_calibrating_twice_gives_the_same_bytes_but_for_times(run):
    first = calibrate(run)
    picture = (run / "calibration" / "reliability.png").read_bytes()
    second = calibrate(run)
    assert (run / "calibration" / "reliability.png").read_bytes() == picture
    for found in (first, second):
        assert all(found.pop(name) > 0 for name in sorted(TIMES))
        assert found["provenance"].pop("created_utc")
    assert json.dumps(first) == json.dumps(second)
    assert first["num_queries"] == first["num_labelled"] == 32
    assert first["provenance"]["split"] == "val"
    assert [p.name for p in run.glob(".*.tmp")] == []


def test_what_is_written_is_what_the_queries_say(run):
    found = calibrate(run, "--method=isotonic")
    evaluate(run)
    probability = read_probabilities(run).double()
    table = pq.read_table(run / "evaluation_val" / "always" / "per_query.parquet")
    hard = torch.tensor(table["difficulty"].to_numpy())
    np.testing.assert_allclose(found["quantiles"][0], probability.min())
    np.testing.assert_allclose(found["quantiles"][-1], probability.max())
    pairs = [
        (p > q) + (p == q) / 2
        for p in probability[hard == 1].tolist()
        for q in probability[hard == 0].tolist()
    ]
    assert found["auroc"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert found["num_positive"] == int((hard == 1).sum())
    assert found["ece_calibrated"] == pytest.approx(0, abs=1e-9)  # on what it was fitted to
    assert found["ece"] > 0.01
    assert read_calibration(run / "calibration.json").method == "isotonic"
    rows, _ = read_results(run / "evaluation_val" / "head" / "results.json")
    values = {row.metric: row.value for row in rows if row.metric.startswith("router_")}
    assert values["router_ece"] == pytest.approx(found["ece"])
    assert values["router_ece_calibrated"] == pytest.approx(found["ece_calibrated"], abs=1e-9)


def test_utility_labels_are_the_ranks_that_get_better(run):
    found = calibrate(run, "--labels=utility")
    folder = evaluate(run)
    ranks = []
    for gate in ("never", "always"):
        found_ranks = read_per_query(folder / gate / "per_query.parquet").first_ranks["local"]
        ranks.append([rank or math.inf for rank in found_ranks.tolist()])
    better = sum(after < before for before, after in zip(*ranks, strict=True))
    assert 0 < better < 32
    assert (found["labels"], found["num_positive"]) == ("utility", better)


def test_labels_may_come_from_rows(run, tmp_path):
    rows = [
        {"qid": "10:1", "task_id": 0, "difficulty": 0},
        {"qid": "10:2", "task_id": 0, "difficulty": 1, "reasoning": "a", "answer": "b"},
    ]
    path = tmp_path / "labels.jsonl"
    write_rows(path, [row | {"source": "teacher", "teacher": "t"} for row in rows])
    assert read_labels(path, ["10:2", "10:3", "10:1"]).tolist() == [1, -1, 0]
    queries = pq.read_table(evaluate(run) / "never" / "per_query.parquet")["query_id"].to_pylist()
    rows = [
        {"qid": query_id, "task_id": 0, "difficulty": i % 2, "source": "teacher", "teacher": "t"}
        | ({"reasoning": "a", "answer": "b"} if i % 2 else {})
        for i, query_id in enumerate(queries[:20])
    ]
    write_rows(path, rows)
    found = calibrate(run, f"--labels={path}")
    assert found["labels_file"] == "labels.jsonl"
    assert (found["num_labelled"], found["num_positive"]) == (20, 10)
    path.write_text('{"qid": "10:1"}\n')
    with pytest.raises(DataError, match=r"labels\.jsonl:1"):
        calibrate(run, f"--labels={path}")


@pytest.mark.parametrize("budget", [0.25, 0.5])
def test_a_budget_is_kept_where_it_was_calibrated(run, budget):
    calibrate(run)
    folder = evaluate(run, f"--gate.budget={budget}")
    queries = read_per_query(folder / "head" / "per_query.parquet")
    assert queries.thinks.float().mean().item() == pytest.approx(budget, abs=1 / 32)
    threshold = queries.think_probability[queries.thinks].min()
    assert threshold > queries.think_probability[~queries.thinks].max()
    _, provenance = read_results(folder / "head" / "results.json")
    assert provenance["gate_settings"]["name"] == "head"
    assert provenance["gate_settings"]["threshold"] <= threshold


def test_a_budget_is_kept_by_queries_that_were_not_calibrated_on(tmp_path):
    """Probabilities of two kinds of queries, as a router gives them; a fresh draw each."""

    def draw(size):
        kinds = (torch.rand(size) < 0.4).long()
        return torch.sigmoid(torch.randn(size) * 2 + 4 * kinds - 2), kinds

    calibration = build_calibration("temperature", *draw(2000), 0.1, 0.3, "annotated")
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(calibration.to_json()))
    probability, _ = draw(20_000)
    nothing = torch.zeros(len(probability))
    features = GateFeatures(nothing.bool(), probability, nothing, nothing.long())
    for budget in (0.1, 0.3, 0.7):
        thinks = HeadGate(budget=budget, calibration=path).decide(features)
        assert thinks.float().mean().item() == pytest.approx(budget, abs=0.025)


def test_the_head_is_at_a_half_of_the_calibrated_probability(run):
    raw = evaluate(run)
    thinks = read_per_query(raw / "head" / "per_query.parquet").thinks
    probability = read_probabilities(run)
    assert torch.equal(thinks, probability >= 0.5)
    calibrate(run, "--method=isotonic")
    after = read_per_query(evaluate(run) / "head" / "per_query.parquet").thinks
    calibrated = read_calibration(run / "calibration.json").calibrate(probability)
    assert torch.equal(after, calibrated >= 0.5)
    assert not torch.equal(after, thinks)


def test_a_speed_is_a_budget(run):
    found = calibrate(run)
    speed = 2 / (found["direct_seconds"] + found["thought_seconds"])
    folder = evaluate(run, f"--gate.queries_per_second={speed}")
    queries = read_per_query(folder / "head" / "per_query.parquet")
    assert queries.thinks.float().mean().item() == pytest.approx(0.5, abs=1 / 32)


def test_think_curve_is_that_of_a_slow_recomputation(run):
    folder = evaluate(run)
    content = json.loads((folder / "think_curve.json").read_text())
    sides = [read_per_query(folder / gate / "per_query.parquet") for gate in ("never", "always")]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    counts = checkpoint["state_dict"]["task_counts"].double()
    tasks = [int(column[-1]) for column in sides[0].columns]
    prior = (counts[tasks, 1] / counts[tasks].sum(1).clamp(min=1)).tolist()
    for pool in ("local", "union"):
        expected = trace_slowly(*sides, pool, prior)
        found = content["pools"][pool]
        assert (
            set(found)
            == set(expected)
            == {
                "head",
                "first_token",
                "task_prior",
                "random",
                "oracle",
            }
        )
        for gate, (scores, fraction) in expected.items():
            assert found[gate]["recall"] == pytest.approx(scores), gate
            assert found[gate]["area_fraction"] == pytest.approx(fraction, abs=1e-9), gate
    rows, _ = read_results(folder / "results.json")
    speeds = {row.gate: row.value for row in rows if row.metric == "queries_per_second"}
    assert content["queries_per_second"][0] == pytest.approx(speeds["never"])
    assert content["queries_per_second"][-1] == pytest.approx(speeds["always"])
    recall = {
        row.gate: row.value
        for row in rows
        if row.metric == "headline"
        and row.column == "all"
        and row.pool == "local"
        and row.subset == "all"
    }
    assert content["pools"]["local"]["head"]["recall"][0] == pytest.approx(recall["never"])
    assert content["pools"]["local"]["head"]["recall"][-1] == pytest.approx(recall["always"])
    assert content["provenance"]["seconds_from"] == "evaluate"
    evaluate(run)  # everything is stored: no speed
    again = json.loads((folder / "think_curve.json").read_text())
    assert again["queries_per_second"] is None
    assert again["pools"] == content["pools"]


def test_pictures_and_scalars_lie_in_the_runs_own_log(run):
    found = calibrate(run)
    folder = evaluate(run)
    content = json.loads((folder / "think_curve.json").read_text())
    assert content["provenance"]["seconds_from"] == "calibrate"  # its embeddings are stored
    assert {name: content[name] for name in TIMES} == {name: found[name] for name in TIMES}
    for name in ("think_curve_local", "think_curve_union", "recall_by_speed_local", "reliability"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.size == (900, 600)
    events = EventAccumulator(str(run)).Reload().Tags()
    assert {"routing/val/ece", "routing/val/auroc"} <= set(events["scalars"])
    assert "routing/val/oracle_area_fraction/local" in events["scalars"]
    assert "routing/val/reliability" in events["images"]


def test_what_is_missing_is_said(run, args, tmp_path):
    with pytest.raises(ValueError, match="is missing: run python -m tracelib calibrate --run"):
        evaluate(run, "--gate.budget=0.3")
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        calibrate(tmp_path)
    calibrate(run)
    with pytest.raises(ValueError, match="choose one"):
        evaluate(run, "--gate.budget=0.3", "--gate.threshold=0.3")
    with pytest.raises(ValueError, match=r"budget is 1\.5, allowed 0 \.\. 1"):
        evaluate(run, "--gate.budget=1.5")


def test_a_run_without_a_router_has_nothing_to_calibrate(args, tmp_path):
    main(["fit", *args, "--model.router_weight=0", f"--trainer.logger.save_dir={tmp_path}"])
    run = tmp_path / "tiny" / "version_0"
    with pytest.raises(ValueError, match="has no router to calibrate"):
        calibrate(run)
    with pytest.raises(ValueError, match="was trained without a router"):
        evaluate(run, "--gate.budget=0.3")


def test_a_calibration_of_other_weights_is_refused(run):
    calibrate(run)
    path = run / "calibration.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"weights": "others"}))
    with pytest.raises(ValueError, match="is of other weights"):
        evaluate(run)
