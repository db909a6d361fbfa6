"""Ranks queries in every local pool and in the union of all, in one pass over the candidates.

Shapes: Q queries, N candidates of a chunk, D dimensions, K ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from tracelib.distributed import gather_tensor, get_world_size
from tracelib.retrieval.evaluation import Ranking
from tracelib.retrieval.search import TopKSearch, merge_top_k

Chunks = Iterable[tuple[int, Tensor]]


def rank_pools(
    queries: Tensor,
    query_spans: Mapping[str, range],
    pools: Mapping[str, Chunks],
    depth: int,
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

    Returns:
        Rankings under `local` and `union`.

    Raises:
        ValueError: A column has queries and no pool, an embedding is zero or not finite, or all
            embeddings of a pool point the same way.
    """
    if lacking := sorted(set(query_spans) - set(pools)):
        raise ValueError(f"no pool for the queries of {lacking}; there are {list(pools)}")
    local_scores = torch.full((len(queries), depth), -torch.inf)
    local_places = torch.full((len(queries), depth), -1)
    union = (local_scores.clone(), local_places.clone())
    for column, chunks in pools.items():
        search = TopKSearch(queries, depth)
        for first_place, rows in chunks:
            search.add(rows, first_place)
        found = _merge_over_ranks(*search.result(), depth)
        union = merge_top_k([union, found], depth)
        span = query_spans.get(column, range(0))
        local_scores[span.start : span.stop] = found[0][span.start : span.stop]
        local_places[span.start : span.stop] = found[1][span.start : span.stop]
    return {"local": Ranking(local_places, local_scores), "union": Ranking(union[1], union[0])}


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
