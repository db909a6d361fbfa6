"""Candidates of a batch that are no negatives of a query although it is not their query.

Shapes: Q queries, C candidates, P positives of a query, N pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def find_false_negatives(
    targets: Tensor, positive_ids: Tensor, candidate_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the pairs of a query and one of its positives that is not its target.

    Only the pairs themselves are held, never a mask of all.

    Args:
        targets: `[Q]` the candidate row of each query's positive.
        positive_ids: `[Q, P]` ids of each query's positives, >= 0, padded with -1.
        candidate_ids: `[C]` ids of the candidates, >= 0.

    Returns:
        `[N]` query rows and `[N]` candidate rows; each pair once.

    >>> find_false_negatives(
    ...     torch.tensor([0, 1]), torch.tensor([[7, -1], [8, 9]]), torch.tensor([7, 8, 7, 9])
    ... )
    (tensor([0, 1]), tensor([2, 3]))
    """
    ordered_ids, order = candidate_ids.sort()
    ids = positive_ids.sort(dim=1).values
    first = torch.searchsorted(ordered_ids, ids)
    counts = torch.searchsorted(ordered_ids, ids, right=True) - first
    counts[:, 1:].masked_fill_(ids[:, 1:] == ids[:, :-1], 0)  # an id that a query names twice
    counts = counts.flatten()
    rows = torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1])
    rows = rows.repeat_interleave(counts)
    # The n-th pair of a run of equal ids is the n-th of them in order.
    starts = (first.flatten() - counts.cumsum(0) + counts).repeat_interleave(counts)
    columns = order[starts + torch.arange(len(rows), device=ids.device)]
    is_other = columns != targets[rows]
    return rows[is_other], columns[is_other]


def count_duplicates(
    targets: Tensor, positive_ids: Tensor, candidate_ids: Tensor, chunk_size: int = 1024
) -> tuple[float, float]:
    """Return how often the candidates of a batch are no news to each other or to a query.

    Args:
        targets: `[Q]` the candidate row of each query's positive.
        positive_ids: `[Q, P]` ids of each query's positives, >= 0, padded with -1.
        candidate_ids: `[C]` ids of the candidates, >= 0.
        chunk_size: Most queries whose pairs are held at once.

    Returns:
        The duplicate rate, the share of candidates that repeat an earlier one, and the collision
        rate, the share of pairs of a query and a candidate other than its target that are false
        negatives; each 0 .. 1, and 0 where there is nothing to count.

    >>> count_duplicates(
    ...     torch.tensor([0, 1]), torch.tensor([[7, -1], [8, 9]]), torch.tensor([7, 8, 7, 9])
    ... )
    (0.25, 0.3333333333333333)
    """
    num_candidates = len(candidate_ids)
    num_pairs = 0
    for first in range(0, len(targets), chunk_size):
        rows = slice(first, first + chunk_size)
        num_pairs += len(find_false_negatives(targets[rows], positive_ids[rows], candidate_ids)[0])
    num_repeats = num_candidates - len(torch.unique(candidate_ids))
    return (
        num_repeats / max(1, num_candidates),
        num_pairs / max(1, len(targets) * (num_candidates - 1)),
    )
