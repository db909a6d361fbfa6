"""Hard negatives: a query's nearest candidates that are no positives and not too near.

What is nearer than a cap is more often a positive that nobody annotated than a mistake to learn
from: taken raw, the nearest candidates make training collapse.

Shapes: Q queries, C candidates, K ranks that were searched, N negatives asked for, D dimensions,
T caps.

References:
    U-MARVEL, arXiv 2507.14902: drop what is more similar than 0.7, then take the first 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracelib.metrics.ranking import RaggedIds, mark_positives
from tracelib.retrieval.search import TopKSearch

SHOWN_CAPS = (0.7, 0.8, 0.9, 0.95, 1.0)
"""Caps for which is counted what they would leave."""


@dataclass(frozen=True)
class MiningRule:
    """Which candidates become hard negatives.

    Args:
        depth: Nearest candidates of a query to look at, its positives not counted.
        max_similarity: Cosine above which a candidate is dropped, -1 .. 1; 1 drops none.
        num_negatives: Most negatives of a query, 1 .. `depth`: the nearest of those left.

    Raises:
        ValueError: A number is out of its range.
    """

    depth: int = 50
    max_similarity: float = 0.7
    num_negatives: int = 5

    def __post_init__(self) -> None:
        if not -1 <= self.max_similarity <= 1:
            raise ValueError(f"max_similarity is {self.max_similarity}, allowed -1 .. 1")
        if not 1 <= self.num_negatives <= self.depth:
            raise ValueError(
                f"num_negatives is {self.num_negatives}, allowed 1 .. {self.depth}, which is depth"
            )


@dataclass(frozen=True, eq=False)
class HardNegatives:
    """What was mined of each query.

    Args:
        places: `[Q, N]` places of the negatives, nearest first, then -1 where there are fewer.
        scores: `[Q, N]` their float32 cosines, -inf where there are fewer.
        num_positives: `[Q]` positives, or candidates of the same content, among those looked at.
        num_capped: `[Q]` other candidates looked at that are nearer than the cap.
        num_left: `[Q, T]` negatives, up to N, under each of `SHOWN_CAPS`.
    """

    places: Tensor
    scores: Tensor
    num_positives: Tensor
    num_capped: Tensor
    num_left: Tensor

    @classmethod
    def allocate(cls, num_queries: int, num_negatives: int) -> HardNegatives:
        """Return those of queries that have none."""
        shape = (num_queries, num_negatives)
        return cls(
            torch.full(shape, -1),
            torch.full(shape, -torch.inf),
            torch.zeros(num_queries, dtype=torch.int32),
            torch.zeros(num_queries, dtype=torch.int32),
            torch.zeros((num_queries, len(SHOWN_CAPS)), dtype=torch.int32),
        )

    def fill(self, queries: Tensor, part: HardNegatives, pool: Tensor) -> None:
        """Take what was mined of the queries at some places `[B]`.

        Args:
            queries: Their places.
            part: What was mined of them in a part of the pool.
            pool: `[C]` places in the whole pool of this part's candidates.
        """
        found = part.places >= 0
        places = part.places.clone()
        places[found] = pool[places[found]]
        for name, values in (vars(part) | {"places": places}).items():
            getattr(self, name)[queries] = values

    def summarize(self) -> dict[str, Any]:
        """Return counts, shares and the mean cosine of what was kept, None where nothing was."""
        num_kept = (self.places >= 0).sum(1)
        size = self.places.shape[1]
        kept = self.scores[self.places >= 0].double()
        shares = zip(
            SHOWN_CAPS,
            (self.num_left > 0).double().mean(0).tolist(),
            (self.num_left == size).double().mean(0).tolist(),
            strict=True,
        )
        return {
            "num_queries": len(num_kept),
            "num_without": int((num_kept == 0).sum()),
            "num_with_fewer": int(((num_kept > 0) & (num_kept < size)).sum()),
            "num_with_all": int((num_kept == size).sum()),
            "num_negatives": int(num_kept.sum()),
            "num_dropped_as_positive": int(self.num_positives.sum()),
            "num_dropped_by_cap": int(self.num_capped.sum()),
            "mean_similarity": kept.mean().item() if len(kept) else None,
            "caps": [
                {"max_similarity": cap, "share_with_any": some, "share_with_all": full}
                for cap, some, full in shares
            ],
        }

    def select(self, queries: Tensor) -> HardNegatives:
        """Return what was mined of some queries `[B]`."""
        return HardNegatives(**{name: values[queries] for name, values in vars(self).items()})


@torch.no_grad()
def find_hard_negatives(
    queries: Tensor,
    chunks: Iterable[tuple[int, Tensor]],
    contents: Tensor,
    positives: RaggedIds,
    rule: MiningRule,
) -> HardNegatives:
    """Return the hard negatives of queries in a pool that is read once, chunk by chunk.

    Args:
        queries: `[Q, D]` embeddings, on the device to search on.
        chunks: Place of the first row and the rows `[B, D]` of each chunk of the pool.
        contents: `[C]` a number of each candidate from 0, the same for those of the same content.
        positives: Numbers of the contents of each query's positives, also of those in no pool.
        rule: What to take.

    Raises:
        ValueError: An embedding is zero or not finite, or candidates of different content all have
            one embedding.
    """
    num_contents = 1 + max(int(part.max()) for part in (contents, positives.ids) if len(part))
    copies = torch.bincount(contents, minlength=num_contents)
    num_excluded = torch.zeros(len(queries), dtype=torch.long)
    owners = torch.arange(len(queries)).repeat_interleave(positives.lengths)
    num_excluded.index_add_(0, owners, copies[positives.ids])
    # room for the positives of all queries beside `depth` others
    deepest = rule.depth + int(num_excluded.max())
    search = TopKSearch(queries, max(1, min(deepest, len(contents))))
    for first_place, rows in chunks:
        search.add(rows, first_place)
    if search.common_direction is not None and bool((contents != contents[0]).any()):
        raise ValueError(
            f"all {len(contents)} candidate embeddings point the same way, so none is hard; check "
            "the encoder's weights and read position"
        )
    scores, places = (part.cpu() for part in search.result())
    return select_hard_negatives(scores, places, contents[places], positives, rule)


def select_hard_negatives(
    scores: Tensor, places: Tensor, contents: Tensor, positives: RaggedIds, rule: MiningRule
) -> HardNegatives:
    """Return the hard negatives among the nearest candidates of queries.

    Of candidates of the same content the first is taken. A cosine equal to the cap, as a float32,
    is not above it.

    Args:
        scores: `[Q, K]` float32 cosines, best first.
        places: `[Q, K]` places of the candidates.
        contents: `[Q, K]` numbers of their contents.
        positives: Numbers of the contents of each query's positives.
        rule: What to take.

    >>> scores, places = torch.tensor([[0.9, 0.6, 0.5, 0.4]]), torch.tensor([[7, 3, 8, 1]])
    >>> rule = MiningRule(depth=3, max_similarity=0.7, num_negatives=2)
    >>> select_hard_negatives(scores, places, places, RaggedIds.from_lists([[3]]), rule).places
    tensor([[8, 1]])
    """
    is_positive = mark_positives(contents, positives)
    others = ~is_positive
    is_looked_at = others.cumsum(1) - others.long() < rule.depth
    is_other = is_looked_at & others
    is_new = is_other & ~_mark_repeats(contents)
    is_taken = is_new & (scores <= rule.max_similarity)
    rank = is_taken.cumsum(1)
    query, column = (is_taken & (rank <= rule.num_negatives)).nonzero(as_tuple=True)
    mined = HardNegatives.allocate(len(scores), rule.num_negatives)
    mined.places[query, rank[query, column] - 1] = places[query, column]
    mined.scores[query, rank[query, column] - 1] = scores[query, column]
    mined.num_positives.copy_((is_looked_at & is_positive).sum(1))
    mined.num_capped.copy_((is_other & (scores > rule.max_similarity)).sum(1))
    for number, cap in enumerate(SHOWN_CAPS):
        left = (is_new & (scores <= cap)).sum(1).clamp(max=rule.num_negatives)
        mined.num_left[:, number] = left
    return mined


def _mark_repeats(contents: Tensor) -> Tensor:
    """Return `[Q, K]` where a content stands in its row a second time or later."""
    ordered, order = contents.sort(dim=1, stable=True)
    is_again = torch.zeros_like(contents, dtype=torch.bool)
    is_again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(is_again).scatter_(1, order, is_again)
