"""Measures of a ranking, from the places at which positives stand in it.

torchmetrics has functions of the same names, but for one query at a time and over scores: they drop
what scores 0 or below, and know only the positives that are in the list they are given. M-BEIR's
positives may be in no pool at all.

Shapes: Q queries, K ranked candidates per query, N positives of all queries together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

_STRIDE = 2**32


@dataclass(frozen=True, eq=False)
class RaggedIds(Sequence[list[int]]):
    """Lists of ids of any length, one per query, in two tensors.

    Args:
        offsets: `[Q + 1]` rising from 0 to N: list i is `ids[offsets[i] : offsets[i + 1]]`.
        ids: `[N]` whole numbers from 0 to 2^32 - 1.

    Raises:
        ValueError: The two do not fit.

    >>> lists = RaggedIds.from_lists([[4, 2], [], [7]])
    >>> len(lists), lists[0], lists.offsets.tolist()
    (3, [4, 2], [0, 2, 2, 3])
    """

    offsets: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        bounds = (int(self.offsets[0]), int(self.offsets[-1])) if len(self.offsets) else None
        if bounds != (0, len(self.ids)) or bool((self.offsets.diff() < 0).any()):
            raise ValueError(f"offsets from and to {bounds} do not divide {len(self.ids)} ids")
        if len(self.ids) and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < _STRIDE:
            raise ValueError(
                f"ids are {int(self.ids.min())} .. {int(self.ids.max())}; allowed 0 .. 2^32 - 1"
            )

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> RaggedIds:
        """Return the same lists in two tensors."""
        lengths = torch.tensor([0, *map(len, lists)])
        return cls(lengths.cumsum(0), torch.tensor([i for ids in lists for i in ids]).long())

    @classmethod
    def from_padded(cls, padded: Tensor) -> RaggedIds:
        """Return the lists of a matrix whose short rows are filled with -1."""
        is_id = padded >= 0
        lengths = torch.cat([is_id.new_zeros(1, dtype=torch.long), is_id.sum(1)])
        return cls(lengths.cumsum(0), padded[is_id].long())

    @property
    def lengths(self) -> Tensor:
        """`[Q]` ids per list."""
        return self.offsets.diff()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"no list {index} of {len(self)}")
        start, stop = self.offsets[index % len(self) :][:2].tolist()
        found: list[int] = self.ids[start:stop].tolist()
        return found


def mark_positives(ranked_ids: Tensor, positives: RaggedIds) -> Tensor:
    """Return where in each ranking a positive of its query stands.

    Scores play no part: a positive at a score of 0 or below counts.

    Args:
        ranked_ids: `[Q, K]` ids, best first; -1 fills short lists and is never a positive.
        positives: The ids of each query's positives.

    Returns:
        `[Q, K]` bool.

    Raises:
        ValueError: `ranked_ids` is not a matrix, or the numbers of queries differ.

    >>> mark_positives(torch.tensor([[4, 2], [0, -1]]), RaggedIds.from_lists([[2, 9], []]))
    tensor([[False,  True],
            [False, False]])
    """
    if ranked_ids.ndim != 2:
        raise ValueError(f"ranked_ids has shape {tuple(ranked_ids.shape)}; expected [Q, K]")
    if len(positives) != len(ranked_ids):
        raise ValueError(f"positives for {len(positives)} queries, but {len(ranked_ids)} rankings")
    device = ranked_ids.device
    if not len(positives.ids):
        return torch.zeros_like(ranked_ids, dtype=torch.bool)
    # One number per (query, id) makes this one sorted look-up; a matrix of all pairs of ranked and
    # positive would not fit where a query has over a hundred positives.
    queries = torch.arange(len(positives)) * _STRIDE
    known = (queries.repeat_interleave(positives.lengths.cpu()) + positives.ids.cpu()).to(device)
    known = known.sort().values
    wanted = queries.to(device)[:, None] + ranked_ids
    found = known[torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)]
    return (found == wanted) & (ranked_ids >= 0)


def first_positive_rank(is_positive: Tensor) -> Tensor:
    """Return the rank of each query's first positive, from 1; 0 when the list holds none.

    Any-hit recall at every k and the reciprocal rank follow from it.

    Args:
        is_positive: `[Q, K]`, best first.

    Returns:
        `[Q]` int64.

    >>> first_positive_rank(torch.tensor([[False, True, True], [False, False, False]]))
    tensor([2, 0])
    """
    if not is_positive.shape[1]:
        return torch.zeros(len(is_positive), dtype=torch.long, device=is_positive.device)
    found, place = is_positive.max(dim=1)
    return torch.where(found, place + 1, 0)


def hit_within_k(first_rank: Tensor, k: int) -> Tensor:
    """Return whether each query's first positive stands among its first k candidates.

    Args:
        first_rank: `[Q]` as of `first_positive_rank`.
        k: Depth, at least 1.

    Returns:
        `[Q]` bool; the mean is any-hit recall at k.

    Raises:
        ValueError: k < 1.

    >>> hit_within_k(torch.tensor([2, 0, 1]), k=1)
    tensor([False, False,  True])
    """
    if k < 1:
        raise ValueError(f"k is {k}; recall needs k >= 1")
    return (first_rank > 0) & (first_rank <= k)


def reciprocal_rank(first_rank: Tensor) -> Tensor:
    """Return 1 / rank of each query's first positive, 0 when there is none; the mean is the MRR.

    Args:
        first_rank: `[Q]` as of `first_positive_rank`.

    Returns:
        `[Q]` float64 in 0 .. 1.

    >>> reciprocal_rank(torch.tensor([2, 0, 1]))
    tensor([0.5000, 0.0000, 1.0000], dtype=torch.float64)
    """
    return torch.where(first_rank > 0, 1 / first_rank.double(), 0.0)


def set_recall_at_k(is_positive: Tensor, num_positives: Tensor, k: int) -> Tensor:
    """Return the fraction of all of a query's positives that stand among its first k candidates.

    What most fields call recall. M-BEIR's Recall@k is another number: see `hit_at_k`.

    Args:
        is_positive: `[Q, K]`, best first.
        num_positives: `[Q]` positives of each query, those in no pool included.
        k: Depth, at least 1.

    Returns:
        `[Q]` float64 in 0 .. 1.

    Raises:
        ValueError: k < 1, or a query has no positive, or fewer than its list holds.

    >>> set_recall_at_k(torch.tensor([[True, False, True]]), torch.tensor([4]), k=3)
    tensor([0.5000], dtype=torch.float64)
    """
    _check_counts(is_positive, num_positives, k)
    return is_positive[:, :k].sum(1).double() / num_positives


def average_precision_at_k(is_positive: Tensor, num_positives: Tensor, k: int) -> Tensor:
    """Return the precision at each positive's rank within k, averaged over what k ranks could hold.

    The sum is divided by min(k, number of positives), so a perfect list scores 1 and a missed
    positive costs. The mean over queries is MAP@k.

    Args:
        is_positive: `[Q, K]`, best first.
        num_positives: `[Q]` positives of each query, those in no pool included.
        k: Depth, at least 1.

    Returns:
        `[Q]` float64 in 0 .. 1.

    Raises:
        ValueError: k < 1, or a query has no positive, or fewer than its list holds.

    >>> average_precision_at_k(torch.tensor([[True, False, True]]), torch.tensor([2]), k=3)
    tensor([0.8333], dtype=torch.float64)
    """
    _check_counts(is_positive, num_positives, k)
    top = is_positive[:, :k].double()
    ranks = torch.arange(1, top.shape[1] + 1, device=top.device)
    return (top.cumsum(1) / ranks * top).sum(1) / num_positives.clamp(max=k)


def _check_counts(is_positive: Tensor, num_positives: Tensor, k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; a metric needs k >= 1")
    bad = (num_positives < is_positive.sum(1).clamp(min=1)).nonzero().flatten()
    if len(bad):
        i = int(bad[0])
        raise ValueError(
            f"query {i} has {int(num_positives[i])} positives and {int(is_positive[i].sum())} in "
            "its list; each needs at least one, and as many as are found"
        )
