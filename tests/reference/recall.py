"""Recall by sets, for one query at a time."""

from __future__ import annotations

from collections.abc import Sequence


def any_hit(ranking: Sequence[int], positives: Sequence[int], k: int) -> float:
    return float(bool(set(ranking[:k]) & set(positives)))


def fractional(ranking: Sequence[int], positives: Sequence[int], k: int) -> float:
    """What others call recall, and M-BEIR does not mean."""
    return len(set(ranking[:k]) & set(positives)) / len(positives)
