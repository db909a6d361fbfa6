"""Ranks queries in every local pool and in the union of all, in one pass over the candidates.

Shapes: Q queries, N candidates of a chunk, D dimensions, K ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tracelib.distributed import gather_rows, gather_tensor, get_world_size
from tracelib.retrieval.cosines import merge_top_k
from tracelib.retrieval.evaluation import Ranking
from tracelib.retrieval.search import TopKSearch

Chunks = Iterable[tuple[int, Tensor]]


class Search(Protocol):
    """A search of one pool, chunk by chunk."""

    def add(self, rows: Tensor, first_place: int) -> None:
        """Search a chunk `[N, D]`, of which the first row has this place."""

    def result(self) -> tuple[Tensor, Tensor]:
        """Return scores and places `[Q, K]`, best first."""


def rank_pools(
    queries: Tensor,
    query_spans: Mapping[str, range],
    pools: Mapping[str, Chunks],
    depth: int,
    build_search: Callable[[Tensor, int], Search] = TopKSearch,
) -> dict[str, Ranking]:
    """Rank every query in its column's pool and in the union pool.

    The union pool is the local pools one after the other, so its best are among their best: each
    pool is read once. Ranks read a share of each pool and merge what they found, which is the same
    on all of them. A pool smaller than `depth` is ranked whole.

    Args:
        queries: `[Q, D]` embeddings, on the device to search on.
        query_spans: Places of each column's queries.
        pools: Per column this rank's chunks of its pool: first place in the union pool, `[N, D]`.
        depth: Ranks to keep.
        build_search: Makes the search of a pool from queries and depth.

    Returns:
        Rankings under `local` and `union`.

    Raises:
        ValueError: A column has queries and no pool, an embedding is zero or not finite, or all
            embeddings of the queries or of a pool are the same.
    """
    if lacking := sorted(set(query_spans) - set(pools)):
        raise ValueError(f"no pool for the queries of {lacking}; there are {list(pools)}")
    if len(queries) > 1 and bool((queries == queries[0]).all()):
        raise ValueError(
            f"all {len(queries)} query embeddings are the same, so no ranking exists; check the "
            "encoder's weights and read position"
        )
    local_scores = torch.full((len(queries), depth), -torch.inf)
    local_places = torch.full((len(queries), depth), -1)
    union = (local_scores.clone(), local_places.clone())
    for column, chunks in pools.items():
        search, share = build_search(queries, depth), _Share()
        for first_place, rows in chunks:
            share.see(rows)
            search.add(rows, first_place)
        _refuse_constant(column, gather_rows([share]))
        found = _merge_over_ranks(*search.result(), depth)
        union = merge_top_k([union, found], depth)
        span = query_spans.get(column, range(0))
        local_scores[span.start : span.stop] = found[0][span.start : span.stop]
        local_places[span.start : span.stop] = found[1][span.start : span.stop]
    return {"local": Ranking(local_places, local_scores), "union": Ranking(union[1], union[0])}


@dataclass
class _Share:
    """What one rank sees of a pool: how many rows, and the first one while all equal it."""

    num_rows: int = 0
    common_row: list[float] | None = None

    def see(self, rows: Tensor) -> None:
        """Look at a chunk, at most until two rows differ."""
        if not self.num_rows:
            self.common_row = rows[0].tolist()
        self.num_rows += len(rows)
        if self.common_row is not None and not bool(
            (rows == rows.new_tensor(self.common_row)).all()
        ):
            self.common_row = None


def _refuse_constant(column: str, shares: list[_Share]) -> None:
    """Raise on every rank when a pool of several candidates has one embedding."""
    seen = [share for share in shares if share.num_rows]
    num_rows = sum(share.num_rows for share in seen)
    same = all(share.common_row == seen[0].common_row for share in seen)
    if num_rows > 1 and same and seen[0].common_row is not None:
        raise ValueError(
            f"all {num_rows} candidate embeddings of {column} are the same, so no ranking exists; "
            "check the encoder's weights and read position"
        )


def _merge_over_ranks(scores: Tensor, places: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the best of all ranks `[Q, K]`, filled up with -inf and -1."""
    short = depth - scores.shape[1]
    scores = functional.pad(scores, (0, short), value=-torch.inf)
    places = functional.pad(places, (0, short), value=-1)
    parts = [(scores.cpu(), places.cpu())]
    if (world_size := get_world_size()) > 1:
        all_scores = gather_tensor(scores).cpu().chunk(world_size)
        parts = list(zip(all_scores, gather_tensor(places).cpu().chunk(world_size), strict=True))
    return merge_top_k(parts, depth)
