"""Checks a fitted run's router: its order of queries, its probabilities, and its budget.

python experiments/bench/router.py [--run RUN] [--budget 0.3]

Nothing is embedded here. `evaluate` left the think-rate curve and a row per query, `calibrate` the
calibration, which it took from the val split; all is judged on the test split.

- `oracle_area_fraction`: where the area under the head's curve lies from that of `random`, 0, to
  that of the oracle, 1: any-hit recall at each column's headline k, mean over columns, local pools.
- `above_random`, `above_task_prior`: least lead of the head's curve at think rates of 10 .. 90 %.
- `ece`: expected calibration error of the calibrated probabilities against the annotated difficulty
  (`raw_ece` without calibration); `auroc` is of the order alone.
- `budget_gap`: how far the think rate on the test split is from the budget.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from query_sources import find_thinking_run
from report import Row, make_row, print_rows, write_rows
from torchmetrics.functional.classification import binary_auroc

from tracelib.metrics.calibration import read_calibration
from tracelib.metrics.reliability import bin_probabilities
from tracelib.models.gates import GateFeatures, HeadGate
from tracelib.retrieval.per_query import PerQuery, read_per_query

_BENCH = "router"
_LIMITS = {
    "oracle_area_fraction": ">= 0.9",
    "ece": "<= 0.03",
    "budget_gap": "<= 0.02",
    "above_random": ">= 0",
    "above_task_prior": ">= 0",
}


def bench_router(
    run: Path | None = None, runs_folder: Path = Path("runs"), budget: float = 0.3
) -> list[Row]:
    """Measure, print the rows and write them to router.json.

    Args:
        run: Folder of the run; default is the newest that was trained to think.
        runs_folder: Where runs are looked for.
        budget: Share of queries that are to think, 0 .. 1.

    Raises:
        FileNotFoundError: The run was not evaluated or not calibrated.
        ValueError: No query's difficulty is known.
    """
    folder = run or find_thinking_run(runs_folder)
    curve, calibration = folder / "evaluation" / "think_curve.json", folder / "calibration.json"
    for path, verb in ((curve, "evaluate"), (calibration, "calibrate")):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: python -m tracelib {verb} --run {folder}")
    queries = read_per_query(folder / "evaluation" / "never" / "per_query.parquet")
    values = compare_curves(json.loads(curve.read_text())["pools"]["local"])
    values |= check_probabilities(queries, calibration)
    values |= check_budget(queries, calibration, budget)
    rows = [make_row(_BENCH, name, value, _LIMITS.get(name, "")) for name, value in values.items()]
    print_rows(rows)
    config = {"run": folder, "budget": budget, "labels": read_calibration(calibration).labels}
    write_rows(_BENCH, rows, config)
    return rows


def compare_curves(curves: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return where the head's curve lies, and the areas of the other gates.

    Args:
        curves: By gate, `recall` at think rates of 0, 10 .. 100 % and `area_fraction`.
    """
    values = {"oracle_area_fraction": curves["head"]["area_fraction"]}
    for gate in ("random", "task_prior"):
        pairs = zip(curves["head"]["recall"][1:-1], curves[gate]["recall"][1:-1], strict=True)
        values[f"above_{gate}"] = min(head - other for head, other in pairs)
    for gate in ("first_token", "task_prior"):
        values[f"{gate}_area_fraction"] = curves[gate]["area_fraction"]
    return values


def check_probabilities(queries: PerQuery, calibration: Path) -> dict[str, float]:
    """Return how well the router's probabilities fit the annotated difficulty.

    Raises:
        ValueError: No query's difficulty is known.
    """
    known = queries.difficulty >= 0
    if not known.any():
        raise ValueError("no query of the test split has a difficulty: there is nothing to check")
    raw, labels = queries.think_probability[known], queries.difficulty[known].long()
    calibrated = read_calibration(calibration).calibrate(raw)
    return {
        "ece": bin_probabilities(calibrated, labels).calibration_error,
        "raw_ece": bin_probabilities(raw, labels).calibration_error,
        "auroc": binary_auroc(raw, labels).item(),
    }


def check_budget(queries: PerQuery, calibration: Path, budget: float) -> dict[str, float]:
    """Return the share of queries that think under the head gate with a budget."""
    gate = HeadGate(budget=budget, calibration=calibration)
    nothing = torch.zeros(len(queries.query_ids))
    features = GateFeatures(
        queries.emb_is_first, queries.think_probability, nothing, nothing.long()
    )
    think_rate = gate.decide(features).double().mean().item()
    return {"think_rate_at_budget": think_rate, "budget_gap": abs(think_rate - budget)}


if __name__ == "__main__":
    auto_cli(bench_router)
