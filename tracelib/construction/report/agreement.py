"""How far two assessors agree on which queries are hard."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Agreement:
    """The verdicts of two assessors on the queries that both have judged.

    Args:
        first: Name of one.
        second: Name of the other.
        num_both_easy: Queries that both call easy.
        num_first_hard: Queries that only the first calls hard.
        num_second_hard: Queries that only the second calls hard.
        num_both_hard: Queries that both call hard.

    >>> agreement = Agreement("rule", "judge", 20, 5, 10, 15)
    >>> agreement.share, agreement.kappa
    (0.7, 0.4)
    """

    first: str
    second: str
    num_both_easy: int = 0
    num_first_hard: int = 0
    num_second_hard: int = 0
    num_both_hard: int = 0

    def add(self, first: int, second: int) -> None:
        """Count a query with its two difficulties, each 0 or 1."""
        self.num_both_easy += not first and not second
        self.num_first_hard += bool(first and not second)
        self.num_second_hard += bool(second and not first)
        self.num_both_hard += bool(first and second)

    @property
    def num_queries(self) -> int:
        """Queries that both have judged."""
        return self.num_both_easy + self.num_first_hard + self.num_second_hard + self.num_both_hard

    @property
    def share(self) -> float | None:
        """Share of queries on which they agree, None without any."""
        if not self.num_queries:
            return None
        return (self.num_both_easy + self.num_both_hard) / self.num_queries

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond chance, 1 for all of it.

        None where chance alone would agree always, as when both call everything hard.
        """
        total, same = self.num_queries, self.num_both_easy + self.num_both_hard
        first = self.num_first_hard + self.num_both_hard
        second = self.num_second_hard + self.num_both_hard
        chance = first * second + (total - first) * (total - second)  # times total**2
        if not total or chance == total * total:
            return None
        return (same * total - chance) / (total * total - chance)

    def to_json(self) -> dict[str, Any]:
        """Return the counts with agreement and kappa, to four digits."""
        rounded = {
            name: None if value is None else round(value, 4)
            for name, value in (("agreement", self.share), ("kappa", self.kappa))
        }
        return {**vars(self), "num_queries": self.num_queries, **rounded}


class Agreements:
    """The agreement of every pair of assessors.

    Args:
        names: Names of the assessors, in their order.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.pairs = [Agreement(*pair) for pair in itertools.combinations(names, 2)]

    def add(self, difficulties: Mapping[str, int]) -> None:
        """Count a query.

        Args:
            difficulties: Difficulty, 0 or 1, by the name of each assessor that has judged it.
        """
        for pair in self.pairs:
            if pair.first in difficulties and pair.second in difficulties:
                pair.add(difficulties[pair.first], difficulties[pair.second])
