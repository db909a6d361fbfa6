"""The think-rate curve in plain Python: ties by counting, columns one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from tracelib.retrieval.columns import headline_k
from tracelib.retrieval.per_query import PerQuery


def trace_slowly(
    direct: PerQuery, thought: PerQuery, pool: str, task_prior: Sequence[float]
) -> dict[str, tuple[list[float], float]]:
    """Return by gate the recall at think rates 0, 0.1 .. 1, and the area between random and oracle.

    Recall is any-hit at each column's headline k, the plain mean over columns.
    """
    hits = [_list_hits(side, pool) for side in (direct, thought)]
    sizes = {name: direct.columns.count(name) for name in direct.columns}
    weights = [1 / len(sizes) / sizes[name] for name in direct.columns]
    gains = [(b - a) * w for a, b, w in zip(*hits, weights, strict=True)]
    orders = {
        "head": direct.think_probability.tolist(),
        "first_token": [0.0 if first else 1.0 for first in direct.emb_is_first.tolist()],
        "task_prior": list(task_prior),
        "random": [0.0] * len(weights),
        "oracle": gains,
    }
    size = len(weights)
    curves = {
        gate: [
            sum(
                w * (a + _share_thinking(order, i, num) * (b - a))
                for i, (a, b, w) in enumerate(zip(*hits, weights, strict=True))
            )
            for num in range(size + 1)
        ]
        for gate, order in orders.items()
        if not any(map(math.isnan, order))
    }
    areas = {
        gate: sum((a + b) / 2 for a, b in pairwise(curve)) / size for gate, curve in curves.items()
    }
    return {
        gate: (
            [curve[math.floor(tenth * size / 10 + 0.5)] for tenth in range(11)],
            (areas[gate] - areas["random"]) / (areas["oracle"] - areas["random"]),
        )
        for gate, curve in curves.items()
    }


def _list_hits(queries: PerQuery, pool: str) -> list[int]:
    ranks = queries.first_ranks[pool].tolist()
    return [int(0 < r <= headline_k(name)) for r, name in zip(ranks, queries.columns, strict=True)]


def _share_thinking(order: Sequence[float], i: int, num: int) -> float:
    """Return how probable it is that query i is among the first `num`, equals in any order."""
    before = sum(other > order[i] for other in order)
    equal = sum(other == order[i] for other in order)
    return min(1.0, max(0.0, (num - before) / equal))
