"""Isotonic regression by its min-max formula, in fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def fit_rising(points: Sequence, labels: Sequence) -> list:
    """Return at each distinct point the largest, over starts, of the smallest mean, over ends."""
    distinct = sorted(set(points))

    def mean(low, high):
        inside = [Fraction(y) for p, y in zip(points, labels, strict=True) if low <= p <= high]
        return sum(inside) / len(inside)

    return [
        max(min(mean(low, high) for high in distinct if high >= p) for low in distinct if low <= p)
        for p in distinct
    ]
