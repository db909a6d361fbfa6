"""Exact cosine search by streaming over the pool.

A score depends on its two rows alone: equal candidates tie to the last bit wherever they stand, so
pool order can break ties. A plain matmul does not give that, since its order of summation varies
with the shape of the chunk and the place in it. Here all rounding happens outside the matmul. Unit
vectors are rounded to multiples of 2^-26, so that products are multiples of 2^-52 and, by
Cauchy-Schwarz, partial sums stay below 2: float64 holds them all, and the matmul is exact in
whatever order it sums. Scores are then rounded to multiples of 2^-24, which float32 holds.

Shapes: Q queries, C candidates, D dimensions, N rows of either side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_COORDINATE_STEPS = 2**26
_SCORE_STEPS = 2**24
_MAX_CANDIDATES = 2**32
_QUERY_BLOCK = 1024


@torch.no_grad()
def search_top_k(
    queries: Tensor, candidates: Tensor, k: int, chunk_size: int = 16384
) -> tuple[Tensor, Tensor]:
    """Return the k candidates of highest cosine per query, ties in pool order.

    Nothing is excluded: a candidate that equals the query ranks like any other (M-BEIR).

    Args:
        queries: `[Q, D]` embeddings of any length and float type; they fix the device.
        candidates: `[C, D]` embeddings in pool order; may stay in host memory.
        k: Candidates per query, 1 .. C.
        chunk_size: Candidates moved and scored at once; bounds memory, never changes the result.

    Returns:
        `[Q, k]` float32 cosines in -1 .. 1, best first, rounded to a multiple of 2^-24, and
        `[Q, k]` int64 positions in the pool.

    Raises:
        ValueError: Shapes do not fit, the pool is empty, k or chunk_size is out of range, a row
            is zero or not finite, or all candidates point the same way (a collapsed encoder).
    """
    _check_request(queries, candidates, k, chunk_size)
    query_units = _round_units(queries, "query", 0)
    best = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    first_unit = _round_units(candidates[:1].to(queries.device), "candidate", 0)
    pool_is_constant = len(candidates) > 1
    for start in range(0, len(candidates), chunk_size):
        rows = candidates[start : start + chunk_size].to(queries.device)
        chunk = _round_units(rows, "candidate", start)
        pool_is_constant = pool_is_constant and bool((chunk == first_unit).all())
        blocks = zip(
            torch.split(best, _QUERY_BLOCK), torch.split(query_units, _QUERY_BLOCK), strict=True
        )
        best = torch.cat([_keep_best(old, units @ chunk.T, start, k) for old, units in blocks])
    if pool_is_constant:
        raise ValueError(
            f"all {len(candidates)} candidate embeddings point the same way, so no ranking exists; "
            "check the encoder's weights and read position"
        )
    positions = -best & (_MAX_CANDIDATES - 1)
    return ((best + positions) // _MAX_CANDIDATES).float() / _SCORE_STEPS, positions


def _check_request(queries: Tensor, candidates: Tensor, k: int, chunk_size: int) -> None:
    """Raise ValueError for shapes and counts no search can serve."""
    shapes = f"queries {tuple(queries.shape)}, candidates {tuple(candidates.shape)}"
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(f"{shapes}; expected [Q, D] and [C, D] with one D")
    if not 0 < len(candidates) <= _MAX_CANDIDATES or not candidates.shape[1]:
        raise ValueError(f"{shapes}; the pool needs 1 .. {_MAX_CANDIDATES} candidates and D >= 1")
    if not 1 <= k <= len(candidates):
        raise ValueError(f"k is {k}; allowed 1 .. {len(candidates)}, the number of candidates")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; allowed 1 and above")


def _round_units(rows: Tensor, side: str, offset: int) -> Tensor:
    """Return `[N, D]` unit vectors as whole float64 multiples of 2^-26, `offset` naming bad rows.

    The squares are summed by folding halves, elementwise: a library reduction may order them by
    the number of rows, and the norm has to depend on its row only.
    """
    values = rows.double()
    squares = values.square()
    while squares.shape[1] > 1:
        squares = functional.pad(squares, (0, squares.shape[1] % 2))
        left, right = squares.chunk(2, dim=1)
        squares = left + right
    norms = squares.sqrt()
    bad = (~norms.isfinite() | (norms == 0)).flatten().nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"{side} row {row + offset} has norm {norms[row].item()}; embeddings must be finite "
            "and not zero"
        )
    return (values / norms * _COORDINATE_STEPS).round()


def _keep_best(best: Tensor, products: Tensor, start: int, k: int) -> Tensor:
    """Merge a chunk's scores `[Q, N]` into the running best, as one sortable integer per hit.

    A key is score * 2^32 - position: all keys differ, so any top-k routine gives the same order.
    """
    scores = products * (_SCORE_STEPS / _COORDINATE_STEPS**2)
    steps = scores.round().clamp(-_SCORE_STEPS, _SCORE_STEPS).long()
    positions = torch.arange(start, start + steps.shape[1], device=steps.device)
    keys = torch.cat([best, steps * _MAX_CANDIDATES - positions], dim=1)
    return keys.topk(min(k, keys.shape[1]), dim=1).values
