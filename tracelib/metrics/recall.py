"""Any-hit recall, which M-BEIR calls Recall@k (others: hit rate, success@k).

Shapes: Q queries, K ranked candidates per query, P positives of the query with most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from tracelib.metrics.ranking import RaggedIds, first_positive_rank, hit_within_k, mark_positives

Positives = RaggedIds | Tensor | Sequence[Sequence[int]]


def hit_at_k(ranked_ids: Tensor, positives: Positives, k: int) -> Tensor:
    """Return 1.0 for each query that has any positive among its first k candidates, else 0.0.

    Scores play no part: a hit at a score of 0 or below counts.

    Args:
        ranked_ids: `[Q, K]` candidate indices, best first; -1 fills short lists and never hits.
            A list shorter than k is taken whole, which is right only where it is the whole pool.
        positives: Indices of each query's positives, or `[Q, P]` padded with -1. A query left
            without any (all of them outside the pool) stays and scores 0.
        k: Depth, at least 1.

    Returns:
        `[Q]` float32.

    Raises:
        ValueError: k < 1, `ranked_ids` is not a matrix, or the numbers of queries differ.

    References:
        M-BEIR (UniIR, arXiv 2311.17136), section 4.

    >>> hit_at_k(torch.tensor([[4, 2], [0, 1]]), [[2, 9], []], k=2)
    tensor([1., 0.])
    """
    first_rank = first_positive_rank(mark_positives(ranked_ids, _unite(positives)))
    return hit_within_k(first_rank, k).float()


class RecallAtK(Metric):
    """Any-hit recall over all queries seen, for several k at once.

    `compute` returns `{"recall@5": scalar, ...}`, a fraction of the queries in 0 .. 1.

    Args:
        ks: Depths, each at least 1 and named once.

    Raises:
        ValueError: `ks` is empty, repeats a depth or holds one below 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    hits: Tensor
    num_queries: Tensor

    def __init__(self, ks: Sequence[int]) -> None:
        super().__init__()
        if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
            raise ValueError(f"ks is {tuple(ks)}; expected different depths, each at least 1")
        self.ks = tuple(ks)
        counts = torch.zeros(len(self.ks), dtype=torch.long)
        self.add_state("hits", counts, dist_reduce_fx="sum")
        self.add_state("num_queries", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, ranked_ids: Tensor, positives: Positives) -> None:
        """Count the hits of one batch; arguments as in `hit_at_k`."""
        self.hits += torch.stack([hit_at_k(ranked_ids, positives, k).sum().long() for k in self.ks])
        self.num_queries += len(ranked_ids)

    def compute(self) -> dict[str, Tensor]:
        """Return the fraction of queries hit, by metric name.

        Raises:
            ValueError: No query was counted.
        """
        if not self.num_queries:
            raise ValueError("recall of 0 queries; update the metric with at least one")
        recalls = self.hits / self.num_queries
        return {f"recall@{k}": recall for k, recall in zip(self.ks, recalls, strict=True)}


def _unite(positives: Positives) -> RaggedIds:
    """Return positives of any form as ragged lists."""
    if isinstance(positives, RaggedIds):
        return positives
    if isinstance(positives, Tensor):
        return RaggedIds.from_padded(positives)
    return RaggedIds.from_lists(positives)
