"""Cosine search with Python floats, which are float64, and a full sort per query."""

from __future__ import annotations

import math

from torch import Tensor


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def search(queries: Tensor, candidates: Tensor, k: int) -> list[list[tuple[float, int]]]:
    """Return (cosine, position) of the best k per query, ties by position."""
    rankings = []
    for query in queries.tolist():
        hits = [(cosine(query, row), i) for i, row in enumerate(candidates.tolist())]
        rankings.append(sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:k])
    return rankings
