"""Cosines of queries with their own candidates only, as MMEB ranks them.

Own candidates lie query after query: those of query i are at `offsets[i]` .. `offsets[i + 1]`.
Shapes: Q queries, C candidates, N own candidates of all queries together, D dimensions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tracelib.metrics.accuracy import check_offsets
from tracelib.retrieval.cosines import round_scores, round_units

_BLOCK_ROWS = 4096


@torch.no_grad()
def score_own_candidates(
    queries: Tensor, candidates: Tensor, places: Tensor, offsets: Tensor
) -> Tensor:
    """Return the cosine of each query with each of its own candidates.

    Args:
        queries: `[Q, D]` embeddings of any length and float type.
        candidates: `[C, D]` embeddings.
        places: `[N]` rows of `candidates`.
        offsets: `[Q + 1]` bounds in `places`.

    Returns:
        `[N]` float32 in -1 .. 1; equal embeddings tie to the last bit (see `cosines`).

    Raises:
        ValueError: Shapes do not fit, a query has no candidates, a place is outside `candidates`,
            or an embedding is zero or not finite.

    >>> rows = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> score_own_candidates(rows[:1] * 3, rows, torch.tensor([1, 0]), torch.tensor([0, 2]))
    tensor([0.6000, 1.0000])
    """
    check_offsets(offsets, len(places), len(queries))
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        shapes = f"queries {tuple(queries.shape)}, candidates {tuple(candidates.shape)}"
        raise ValueError(f"{shapes}; expected [Q, D] and [C, D] with one D")
    if int(places.min()) < 0 or int(places.max()) >= len(candidates):
        raise ValueError(
            f"places run from {int(places.min())} to {int(places.max())}; allowed are "
            f"0 .. {len(candidates) - 1}, the rows of candidates"
        )
    products = torch.empty(len(places), dtype=torch.float64)
    query_units = _round_rows(queries, "query")
    candidate_units = _round_rows(candidates, "candidate")
    for unit, (start, stop) in zip(query_units, pairwise(offsets.tolist()), strict=True):
        products[start:stop] = candidate_units[places[start:stop]].double() @ unit.double()
    return round_scores(products)


def _round_rows(rows: Tensor, side: str) -> Tensor:
    """Return `[N, D]` unit vectors in steps, which int32 holds in half the memory."""
    units = torch.empty(rows.shape, dtype=torch.int32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        stop = start + _BLOCK_ROWS
        units[start:stop] = round_units(rows[start:stop], side, start)
    return units
