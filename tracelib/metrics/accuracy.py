"""Accuracy against each query's own candidates, the gold one first: MMEB's metric.

Own candidates lie query after query: those of query i are at `offsets[i]` .. `offsets[i + 1]`.
Shapes: Q queries, N own candidates of all queries together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric


@dataclass(frozen=True)
class GoldComparison:
    """Where the gold candidate of each query stands among the query's own candidates.

    Args:
        num_above: `[Q]` candidates with a higher score than the gold one.
        num_tied: `[Q]` other candidates with the same score.
        best: `[Q]` the first candidate of highest score, counted from 0, the gold one.
    """

    num_above: Tensor
    num_tied: Tensor
    best: Tensor

    @property
    def is_correct(self) -> Tensor:
        """`[Q]` whether nothing is above the gold one, which wins its ties (MMEB)."""
        return self.num_above == 0

    @property
    def is_correct_strict(self) -> Tensor:
        """`[Q]` whether the gold one is above everything else."""
        return self.is_correct & (self.num_tied == 0)


def compare_gold(scores: Tensor, offsets: Tensor) -> GoldComparison:
    """Compare the first of each query's own candidates, the gold one, with the others.

    Args:
        scores: `[N]` scores, the gold candidate's first within each query.
        offsets: `[Q + 1]` bounds in `scores`.

    Raises:
        ValueError: `offsets` does not fit, a query has no candidates, or a score is not finite.

    >>> found = compare_gold(torch.tensor([0.9, 0.9, 0.1, 0.2, 0.7]), torch.tensor([0, 3, 5]))
    >>> found.is_correct.tolist(), found.is_correct_strict.tolist(), found.best.tolist()
    ([True, False], [False, False], [0, 1])
    """
    check_offsets(offsets, len(scores), len(offsets) - 1)
    if not bool(scores.isfinite().all()):
        place = int((~scores.isfinite()).nonzero()[0])
        raise ValueError(f"score {place} is {scores[place].item()}; scores must be finite")
    lengths = offsets.diff()
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    gold = scores[offsets[:-1]][owner]
    highest = torch.full((len(lengths),), -torch.inf, dtype=scores.dtype).scatter_reduce(
        0, owner, scores, "amax"
    )
    order = torch.arange(len(scores)) - offsets[:-1][owner]
    order = torch.where(scores == highest[owner], order, len(scores))
    zeros = torch.zeros(len(lengths), dtype=torch.long)
    return GoldComparison(
        num_above=zeros.index_add(0, owner, (scores > gold).long()),
        num_tied=zeros.index_add(0, owner, (scores == gold).long()) - 1,
        best=torch.full_like(zeros, len(scores)).scatter_reduce(0, owner, order, "amin"),
    )


class GoldAccuracy(Metric):
    """Share of queries whose gold candidate scores highest among their own candidates.

    `compute` returns fractions in 0 .. 1: `accuracy`, where the gold candidate wins its ties, as in
    the benchmark, and `accuracy_strict`, where a tie with another candidate is a miss.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    num_correct: Tensor
    num_correct_strict: Tensor
    num_queries: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("num_correct", "num_correct_strict", "num_queries"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, comparison: GoldComparison) -> None:
        """Count the queries of one comparison."""
        self.num_correct += comparison.is_correct.sum()
        self.num_correct_strict += comparison.is_correct_strict.sum()
        self.num_queries += len(comparison.num_above)

    def compute(self) -> dict[str, Tensor]:
        """Return the accuracies by metric name.

        Raises:
            ValueError: No query was counted.
        """
        if not self.num_queries:
            raise ValueError("accuracy of 0 queries; update the metric with at least one")
        return {
            "accuracy": self.num_correct / self.num_queries,
            "accuracy_strict": self.num_correct_strict / self.num_queries,
        }


def check_offsets(offsets: Tensor, num_own: int, num_queries: int) -> None:
    """Check the bounds of own candidates.

    Args:
        offsets: `[Q + 1]` bounds.
        num_own: N.
        num_queries: Q.

    Raises:
        ValueError: They do not cover all own candidates, or leave a query without.
    """
    if len(offsets) != num_queries + 1 or int(offsets[0]) != 0 or int(offsets[-1]) != num_own:
        ends = f"{len(offsets)} offsets, {offsets[:1].tolist()} .. {offsets[-1:].tolist()}"
        raise ValueError(f"{ends}; expected {num_queries + 1} of them, from 0 to {num_own}")
    if num_queries < 1 or bool((offsets.diff() < 1).any()):
        empty = (offsets.diff() < 1).nonzero().flatten()[:1].tolist()
        raise ValueError(f"query {empty} has no candidates of its own; each needs at least one")
