"""The router's bench, on a run whose numbers are known beforehand."""

import json

import pytest
import torch

from tracelib.callbacks.think_curve_report import trace_gates, write_think_curves
from tracelib.metrics.calibration import build_calibration
from tracelib.retrieval.per_query import PerQuery, write_per_query

SIZE = 100
HARD = (torch.arange(SIZE) < 40).long()
PROBABILITY = torch.linspace(0.99, 0.01, SIZE)
"""The router's order is perfect: all hard queries come first."""


def make_queries(thinks):
    """Of the first 40 queries thought alone hits, of the others the direct embedding alone."""
    ranks = torch.where((HARD == 1) == thinks, 1, 0)
    return PerQuery(
        [f"1:{i}" for i in range(SIZE)],
        ["scenes_task3"] * SIZE,
        torch.zeros(SIZE),
        HARD,
        torch.ones(SIZE),
        {"local": ranks, "union": ranks},
        torch.full((SIZE,), thinks),
        torch.ones(SIZE),
        PROBABILITY,
        ~(PROBABILITY > 0.9),
    )


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    direct, thought = make_queries(False), make_queries(True)
    write_per_query(folder / "evaluation" / "never" / "per_query.parquet", direct)
    # the prior has it the wrong way round
    curves = trace_gates(direct, thought, task_prior=1 - HARD.double())
    write_think_curves(folder / "evaluation" / "think_curve.json", curves, {})
    calibration = build_calibration("isotonic", PROBABILITY, HARD, None, None, "annotated")
    (folder / "calibration.json").write_text(json.dumps(calibration.to_json()))
    return folder


def test_router_bench_from_the_command_line(run, run_script):
    report, output = run_script("router.py", "router.json", run=run)
    values = {row["metric"]: row["value"] for row in report["rows"]}
    limits = {row["metric"]: row["against"] for row in report["rows"]}
    assert values["oracle_area_fraction"] == pytest.approx(1)
    assert values["task_prior_area_fraction"] == pytest.approx(-1)
    assert values["above_random"] == pytest.approx(0.5 - 0.42)  # where 90 % think
    assert values["auroc"] == pytest.approx(1)
    assert values["ece"] == pytest.approx(0, abs=1e-9)
    assert values["raw_ece"] > 0.1
    assert values["think_rate_at_budget"] == pytest.approx(0.3)
    assert values["budget_gap"] == pytest.approx(0, abs=1e-9)
    assert (limits["oracle_area_fraction"], limits["ece"]) == (">= 0.9", "<= 0.03")
    assert {row["bench"] for row in report["rows"]} == {"router"}
    assert report["provenance"]["config"]["labels"] == "annotated"
    assert "oracle_area_fraction" in output


def test_a_router_that_is_worse_than_the_prior_shows_it(load_script):
    router = load_script("router")
    curves = {
        gate: {"recall": [0.5, height, *[0.6] * 8, 0.7], "area_fraction": 0.1}
        for gate, height in (
            ("head", 0.6),
            ("random", 0.55),
            ("task_prior", 0.65),
            ("first_token", 0.5),
        )
    }
    values = router.compare_curves(curves)
    assert values["above_random"] == 0
    assert values["above_task_prior"] == pytest.approx(-0.05)


def test_what_is_missing_names_its_verb(run, load_script):
    (run / "calibration.json").unlink()
    with pytest.raises(FileNotFoundError, match="tracelib calibrate --run"):
        load_script("router").bench_router(run)
