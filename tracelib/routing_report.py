"""What an evaluated run's gates and router are worth: rows, think-rate curves, reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torchmetrics.functional.classification import binary_auroc

from tracelib.callbacks.routing_charts import draw_reliability, draw_think_curves, write_charts
from tracelib.callbacks.stored_evaluation import Evaluation
from tracelib.callbacks.think_curve_report import trace_gates, write_think_curves
from tracelib.fitted_run import LoadedRun
from tracelib.metrics.reliability import Reliability, bin_probabilities
from tracelib.models.gates import AlwaysGate, HeadGate, NeverGate
from tracelib.retrieval.per_query import PerQuery, collect_per_query
from tracelib.retrieval.runs import ResultRow

_ROUTER = "router_"


def report_routing(
    loaded: LoadedRun,
    found: Mapping[str, Evaluation],
    provenance: Mapping[str, Any],
) -> None:
    """Write think_curve.json, and pictures of it and of the router's reliability.

    Args:
        loaded: A run that thinks.
        found: Its evaluations by gate; `never` and `always` are among them.
        provenance: Of `describe_evaluation`.
    """
    direct, thought = found[NeverGate.name], found[AlwaysGate.name]
    seconds, source = _find_seconds(loaded, direct, thought)
    tasks = torch.from_numpy(direct.evaluation_set.queries.task_ids).long()
    prior = loaded.module.get_task_prior(tasks.to(loaded.module.device)).cpu()
    curves = trace_gates(_collect(direct), _collect(thought), prior, *seconds)
    folder = loaded.evaluation_folder
    write_think_curves(folder / "think_curve.json", curves, {"seconds_from": source, **provenance})
    pictures = draw_think_curves(loaded.split, curves)
    scalars: dict[str, float] = {}
    if HeadGate.name in found:
        for pool, by_gate in curves.pools.items():
            fraction = by_gate[HeadGate.name].area_fraction
            if not math.isnan(fraction):
                scalars[f"oracle_area_fraction/{pool}"] = fraction
        if bins := _bin_router(loaded, found[HeadGate.name]):
            pictures["reliability"] = draw_reliability(loaded.split, bins)
        rows = found[HeadGate.name].rows
        scalars |= {
            row.metric.removeprefix(_ROUTER): row.value
            for row in rows
            if row.metric.startswith(_ROUTER)
        }
    write_charts(folder, loaded.folder, loaded.split, pictures, scalars)


def _find_seconds(
    loaded: LoadedRun, direct: Evaluation, thought: Evaluation
) -> tuple[tuple[float | None, float | None], str | None]:
    """Return the seconds of a query without and with thought, and who measured them.

    Those of the calibration stand in where embeddings were in the store already.
    """
    totals = direct.thoughts.seconds, thought.thoughts.seconds
    if totals[0] is not None and totals[1] is not None:
        return (totals[0] / len(direct.facts), totals[1] / len(direct.facts)), "evaluate"
    if (found := loaded.calibration) is not None:
        return (found.direct_seconds, found.thought_seconds), "calibrate"
    return (None, None), None


def _collect(evaluation: Evaluation) -> PerQuery:
    queries = evaluation.evaluation_set.queries
    return collect_per_query(
        queries.query_ids, evaluation.facts, evaluation.thoughts, evaluation.rankings
    )


def _bin_router(loaded: LoadedRun, evaluation: Evaluation) -> dict[str, Reliability]:
    """Return how the router's probabilities agree with the annotation, raw and calibrated."""
    known = evaluation.facts.difficulty >= 0
    if not known.any():
        return {}
    raw, labels = evaluation.thoughts.think_probability[known], evaluation.facts.difficulty[known]
    bins = {"raw": bin_probabilities(raw, labels)}
    if loaded.calibration is not None:
        bins["calibrated"] = bin_probabilities(loaded.calibration.calibrate(raw), labels)
    return bins


def judge_thoughts(loaded: LoadedRun, gate: str, evaluation: Evaluation) -> list[ResultRow]:
    """Return what is said of the thoughts and the router over all queries together."""
    decode, thoughts = loaded.data.processor.tokenizer.decode, evaluation.thoughts
    written = [
        q.rationale and decode(list(ids)) == q.rationale.text
        for q, ids in zip(
            evaluation.evaluation_set.queries, thoughts.rationale_token_ids, strict=True
        )
    ]
    values: dict[tuple[str, str], float] = {
        ("all", "forced_emb_token_rate"): thoughts.is_forced.float().mean().item()
    }
    hard = [
        right
        for right, think in zip(written, thoughts.thinks.tolist(), strict=True)
        if right is not None and think
    ]
    if hard:
        values["hard", "exact_rationale"] = sum(map(bool, hard)) / len(hard)
    known = evaluation.facts.difficulty >= 0
    if gate == HeadGate.name and known.any():
        probability = thoughts.think_probability[known]
        values["all", f"{_ROUTER}auroc"] = binary_auroc(
            probability, evaluation.facts.difficulty[known]
        ).item()
        for name, bins in _bin_router(loaded, evaluation).items():
            suffix = "" if name == "raw" else f"_{name}"
            values["all", f"{_ROUTER}ece{suffix}"] = bins.calibration_error
    return [ResultRow(loaded.name, gate, "all", "local", s, m, v) for (s, m), v in values.items()]
