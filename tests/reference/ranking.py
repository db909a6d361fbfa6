"""Average precision and reciprocal rank, for one query at a time."""

from __future__ import annotations

from collections.abc import Sequence


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
