"""A run's means over MMEB's groups, beside published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from tracelib.data.mmeb.subsets import GROUPS

PUBLISHED: dict[str, tuple[float | None, ...]] = {
    "RGE-3B": (64.4, 67.8, 70.2, 90.1, 75.3, 63.7, 70.1),
    "RGE-3B without reasoning": (59.5, 59.9, 66.8, 88.0, 70.6, 58.4, 65.2),
    "MoCa-3B": (59.8, 62.9, 70.6, 88.6, None, None, 67.5),
    "B3-2B": (67.0, 61.2, 70.9, 79.9, None, None, 68.1),
    "VLM2Vec-2B": (None, None, None, None, None, None, 59.3),
    "VLM2Vec-7B": (None, None, None, None, None, None, 65.8),
}
"""Accuracy in percent, in the order of `GROUPS`; None where the figure gives none."""
PUBLISHED_SOURCE = "results figure of the RGE repository, MCG-NJU/RGE (arXiv 2511.16150)"


@dataclass(frozen=True)
class GroupMean:
    """The unweighted mean of a group's subsets.

    Args:
        group: Name in `GROUPS`.
        value: The mean, a fraction.
        num_subsets: Subsets it is of.
        missing: Subsets of the group that were not evaluated.
    """

    group: str
    value: float
    num_subsets: int
    missing: tuple[str, ...]

    @property
    def label(self) -> str:
        """The group's name, with the number of subsets where some are missing."""
        total = self.num_subsets + len(self.missing)
        return f"{self.group} ({self.num_subsets} of {total})" if self.missing else self.group


def mean_over_groups(values: Mapping[str, float]) -> list[GroupMean]:
    """Return the mean of each group that has any subset, each subset weighing the same.

    Args:
        values: A fraction per subset.

    Raises:
        ValueError: A subset is unknown.

    >>> [(mean.label, mean.value) for mean in mean_over_groups({"GQA": 0.5, "VizWiz": 1.0})]
    [('vqa (2 of 10)', 0.75), ('out_of_distribution (2 of 16)', 0.75), ('all (2 of 36)', 0.75)]
    """
    if unknown := [name for name in values if name not in GROUPS["all"]]:
        raise ValueError(f"unknown MMEB subsets {unknown}; there are {', '.join(GROUPS['all'])}")
    means = []
    for group, members in GROUPS.items():
        found = [values[name] for name in members if name in values]
        if found:
            missing = tuple(name for name in members if name not in values)
            means.append(GroupMean(group, math.fsum(found) / len(found), len(found), missing))
    return means


def build_mmeb_table(rows: Mapping[str, Sequence[GroupMean]]) -> Table:
    """Return a table in percent: means by the name of their row, then the published ones.

    A mean of fewer subsets than the group has says how many, as in `51.3 (4/10)`: it does not
    compare with published numbers.
    """
    table = Table("MMEB accuracy, %", caption=f"published: {PUBLISHED_SOURCE}")
    for heading in ("CLS", "VQA", "RET", "GRD", "IND", "OOD", "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, means in rows.items():
        cells = {mean.group: _format_mean(mean) for mean in means}
        table.add_row(name, *(cells.get(group, "-") for group in GROUPS))
    table.add_section()
    for name, numbers in PUBLISHED.items():
        table.add_row(name, *("-" if number is None else f"{number:.1f}" for number in numbers))
    return table


def build_subset_table(title: str, results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a line per subset; strict accuracy takes a tie with the gold candidate for a miss."""
    table = Table(title)
    for heading in ("accuracy, %", "strict, %", "queries", "think rate", "tokens/query"):
        table.add_column(heading, justify="right")
    for name, found in results.items():
        table.add_row(
            name,
            f"{100 * found['accuracy']:.1f}",
            f"{100 * found['accuracy_strict']:.1f}",
            f"{found['num_queries']:,}",
            f"{found['think_rate']:.3f}",
            f"{found['tokens_per_query']:.1f}",
        )
    return table


def _format_mean(mean: GroupMean) -> str:
    count = f" ({mean.num_subsets}/{len(GROUPS[mean.group])})" if mean.missing else ""
    return f"{100 * mean.value:.1f}{count}"
