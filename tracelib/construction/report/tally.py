"""How often each whole number came, exact and small: lengths in tokens, confidences in percent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

_STEPS = (1, 2, 5)


class Bin(NamedTuple):
    """A bar of a histogram.

    Args:
        low: Least value in it.
        high: Largest value in it.
        num_values: Values in it.
    """

    low: int
    high: int
    num_values: int


class Tally:
    """Counts whole numbers; memory grows with the number of different ones.

    >>> tally = Tally()
    >>> for value in (2, 2, 3, 9):
    ...     tally.add(value)
    >>> tally.mean, tally.find_quantile(0.5), tally.find_quantile(1)
    (4.0, 2, 9)
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Count a value once more."""
        self._counts[value] += 1

    @property
    def num_values(self) -> int:
        """Values counted."""
        return self._counts.total()

    @property
    def mean(self) -> float:
        """Mean of the values, NaN of none."""
        if not self._counts:
            return math.nan
        return self.sum_powers()[0] / self.num_values

    @property
    def range(self) -> tuple[int, int]:
        """Least and largest value; (0, 0) of none."""
        return (min(self._counts), max(self._counts)) if self._counts else (0, 0)

    def find_quantile(self, share: float) -> int:
        """Return the least value that at least a share of the values do not exceed; 0 of none.

        Args:
            share: Above 0, at most 1; 0.5 is the lower median.
        """
        needed, seen = share * self.num_values, 0
        for value, count in sorted(self._counts.items()):
            seen += count
            if seen >= needed:
                return value
        return 0

    def sum_powers(self) -> tuple[int, int]:
        """Return the sum of the values, and of their squares."""
        counted = self._counts.items()
        return sum(v * count for v, count in counted), sum(v * v * count for v, count in counted)

    def split_bins(self, starts: Sequence[int], width: int) -> list[Bin]:
        """Return a bar per start, a multiple of `width`, of the `width` values from it on."""
        counts: Counter[int] = Counter()
        for value, count in self._counts.items():
            counts[value // width * width] += count
        return [Bin(start, start + width - 1, counts[start]) for start in starts]

    def to_json(self) -> dict[str, Any]:
        """Return number, mean, quantiles and every value with its count; None stands for NaN."""
        low, high = self.range
        return {
            "num": self.num_values,
            "mean": round(self.mean, 4) if self._counts else None,
            "min": low,
            "median": self.find_quantile(0.5),
            "p95": self.find_quantile(0.95),
            "max": high,
            "counts": {str(value): count for value, count in sorted(self._counts.items())},
        }


def choose_bins(tallies: Sequence[Tally], max_bins: int = 16) -> tuple[list[int], int]:
    """Return the starts of bars that hold the values of all tallies, and their round width.

    >>> tally = Tally()
    >>> for value in (17, 90):
    ...     tally.add(value)
    >>> choose_bins([tally], max_bins=4)
    ([0, 50], 50)
    """
    ranges = [tally.range for tally in tallies if tally.num_values]
    if not ranges:
        return [], 1
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    power = 1
    while True:
        for step in _STEPS:
            width = step * power
            first, last = low // width, high // width
            if last - first < max_bins:
                return [place * width for place in range(first, last + 1)], width
        power *= 10
