"""Exact ranks of the best positive, however deep it stands, counted while a pool streams by.

A top-k search ends at k. Here a candidate is only compared with the query's best positive, so rank
10,000 costs no more memory than rank 1. Scores are exact (`tracelib.retrieval.cosines`): chunks
cannot change a rank, and a copy of the positive never outranks it.

Shapes: Q queries, N rows of a chunk, D dimensions, P pairs of a query and a positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tracelib.metrics.ranking import RaggedIds
from tracelib.metrics.utility import Standing
from tracelib.retrieval.cosines import round_scores, round_units

_BLOCK_ROWS = 1024
_LEAST_COSINE = -1.0


@torch.no_grad()
def find_standing(
    queries: Tensor,
    positives: RaggedIds,
    iterate_chunks: Callable[[], Iterable[tuple[int, Tensor]]],
) -> Standing:
    """Return where each query's best positive stands in a pool.

    Positives never count against each other, so the false negatives that qrels name are masked.
    A pool of positives alone has its best other candidate at a cosine of -1.

    Args:
        queries: `[Q, D]` embeddings, on the device to compute on.
        positives: Places of each query's positives; those outside the pool are passed over.
        iterate_chunks: Called for each of two passes over the pool: yields the place of a chunk's
            first row, and its rows `[N, D]`.

    Raises:
        ValueError: There are not as many lists of positives as queries, or an embedding is zero or
            not finite.
    """
    if len(positives) != len(queries):
        raise ValueError(f"positives of {len(positives)} queries, but {len(queries)} queries")
    best = torch.full((len(queries),), -torch.inf, device=queries.device)
    for first_place, rows in iterate_chunks():
        query, row = _list_pairs(positives, first_place, len(rows))
        for start in range(0, len(query), _BLOCK_ROWS):
            owner, place = (spots[start : start + _BLOCK_ROWS] for spots in (query, row))
            units = round_units(queries[owner], "query", 0)
            own = round_units(rows[place].to(queries.device), "candidate", first_place)
            scores = round_scores((units * own).sum(1))
            best.scatter_reduce_(0, owner.to(best.device), scores, "amax")
    num_better = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    best_other = torch.full_like(best, _LEAST_COSINE)
    for first_place, rows in iterate_chunks():
        query, row = _list_pairs(positives, first_place, len(rows))
        own = round_units(rows.to(queries.device), "candidate", first_place)
        for start in range(0, len(queries), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            scores = round_scores(round_units(queries[block], "query", start) @ own.T)
            here = (query >= start) & (query < block.stop)
            scores[query[here] - start, row[here]] = -torch.inf
            num_better[block] += (scores > best[block, None]).sum(1)
            best_other[block] = torch.maximum(best_other[block], scores.amax(1))
    found = best > -torch.inf
    margin = torch.where(found, best.double() - best_other.double(), torch.nan)
    return Standing(torch.where(found, 1 + num_better, 0).cpu(), margin.cpu())


def _list_pairs(positives: RaggedIds, first_place: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the queries `[P]` that have positives in a chunk, and the rows `[P]` of these."""
    query = torch.arange(len(positives)).repeat_interleave(positives.lengths)
    row = positives.ids - first_place
    is_here = (row >= 0) & (row < num_rows)
    return query[is_here], row[is_here]
