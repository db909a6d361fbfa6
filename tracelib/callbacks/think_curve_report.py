"""The think-rate curve of an evaluated run: what each gate's order of queries is worth.

Shape: Q queries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracelib.metrics.think_curve import (
    THINK_RATES,
    ThinkCurve,
    compute_gains,
    mix_queries_per_second,
    trace_think_curve,
    weight_columns_equally,
)
from tracelib.retrieval.columns import headline_k
from tracelib.retrieval.per_query import PerQuery
from tracelib.retrieval.whole_files import write_whole


@dataclass(frozen=True)
class ThinkCurves:
    """Recall by think rate, of every gate's order of queries.

    Args:
        pools: By pool (`local`, `union`) and gate, any-hit recall at each column's headline k, mean
            over columns. `random` and `oracle` are among the gates, and `head` where there is a
            router.
        direct_seconds: Time of embedding one query without thought; None when not measured.
        thought_seconds: The same with thought.
    """

    pools: Mapping[str, Mapping[str, ThinkCurve]]
    direct_seconds: float | None
    thought_seconds: float | None

    @property
    def queries_per_second(self) -> list[float] | None:
        """The speed at each of `THINK_RATES`; None where a time was not measured."""
        if self.direct_seconds is None or self.thought_seconds is None:
            return None
        times = self.direct_seconds, self.thought_seconds
        return [mix_queries_per_second(rate, *times) for rate in THINK_RATES]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON values; an area fraction that is undefined is null."""
        return {
            "think_rates": list(THINK_RATES),
            "queries_per_second": self.queries_per_second,
            "direct_seconds": self.direct_seconds,
            "thought_seconds": self.thought_seconds,
            "pools": {
                pool: {gate: _describe(curve) for gate, curve in curves.items()}
                for pool, curves in self.pools.items()
            },
        }


def trace_gates(
    direct: PerQuery,
    thought: PerQuery,
    task_prior: Tensor,
    direct_seconds: float | None = None,
    thought_seconds: float | None = None,
) -> ThinkCurves:
    """Return the curves of a run from its queries without and with thought.

    Args:
        direct: What was found without thought.
        thought: What was found when all queries think, in the same order.
        task_prior: `[Q]` share of hard training queries in each query's task.
        direct_seconds: Time of embedding one query without thought; None when not measured.
        thought_seconds: The same with thought.
    """
    priorities = {
        "head": direct.think_probability,
        "first_token": (~direct.emb_is_first).double(),
        "task_prior": task_prior,
        "random": torch.zeros(len(task_prior)),
    }
    if direct.think_probability.isnan().any():
        del priorities["head"]
    names = list(dict.fromkeys(direct.columns))
    weights = weight_columns_equally(torch.tensor([names.index(name) for name in direct.columns]))
    pools = {}
    for pool in direct.first_ranks:
        before, after = (_score_headline(side, pool) for side in (direct, thought))
        orders = {**priorities, "oracle": compute_gains(before, after, weights)}
        pools[pool] = {
            gate: trace_think_curve(before, after, order.cpu(), weights)
            for gate, order in orders.items()
        }
    return ThinkCurves(pools, direct_seconds, thought_seconds)


def write_think_curves(path: Path, curves: ThinkCurves, provenance: Mapping[str, Any]) -> None:
    """Write the curves and where they are from as JSON."""
    content = {"provenance": provenance, **curves.to_json()}
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _score_headline(queries: PerQuery, pool: str) -> Tensor:
    """Return `[Q]` 1 where the first positive is within the column's headline k, else 0."""
    ranks = queries.first_ranks[pool].cpu()
    depths = torch.tensor([headline_k(column) for column in queries.columns])
    return ((ranks > 0) & (ranks <= depths)).double()


def _describe(curve: ThinkCurve) -> dict[str, Any]:
    fraction = None if math.isnan(curve.area_fraction) else curve.area_fraction
    return {"recall": list(curve.scores), "area": curve.area, "area_fraction": fraction}
