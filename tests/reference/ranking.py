"""Average precision, reciprocal rank and exact ranks, for one query at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def average_precision(
    ranking: Sequence[int], positives: Sequence[int], k: int, num_positives: int
) -> float:
    found, total = 0, 0.0
    for rank, candidate in enumerate(ranking[:k], 1):
        if candidate in positives:
            found += 1
            total += found / rank
    return total / min(k, num_positives)


def first_rank(ranking: Sequence[int], positives: Sequence[int]) -> int:
    return next((rank for rank, c in enumerate(ranking, 1) if c in positives), 0)


def find_standing(
    query: Sequence[float], candidates: Sequence[Sequence[float]], positives: Sequence[int]
) -> tuple[int, float]:
    """Return rank and margin of the best positive; squared cosines are compared as fractions."""

    def measure(row: Sequence[float]) -> Fraction:
        dot = sum(Fraction(a) * Fraction(b) for a, b in zip(query, row, strict=True))
        return dot * abs(dot) / sum(Fraction(b) ** 2 for b in row)

    scores = [measure(row) for row in candidates]
    own = [scores[i] for i in positives if i < len(scores)]
    if not own:
        return 0, math.nan
    others = [score for i, score in enumerate(scores) if i not in positives]
    length = math.sqrt(sum(value**2 for value in query))
    best, other = (
        math.copysign(math.sqrt(abs(score)), score) / length for score in (max(own), max(others))
    )
    return 1 + sum(score > max(own) for score in others), best - other
