"""Exact cosine search of a pool that is one tensor.

Shapes: Q queries, C candidates, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracelib.retrieval.cosines import MAX_CANDIDATES
from tracelib.retrieval.search import TopKSearch


@torch.no_grad()
def search_top_k(
    queries: Tensor, candidates: Tensor, k: int, chunk_size: int = 16384
) -> tuple[Tensor, Tensor]:
    """Return the k candidates of highest cosine per query, as `TopKSearch` does, of one tensor.

    Args:
        queries: `[Q, D]` embeddings of any length and float type; they fix the device.
        candidates: `[C, D]` embeddings in pool order; may stay in host memory.
        k: Candidates per query, 1 .. C.
        chunk_size: Candidates moved and scored at once; bounds memory, never changes the result.

    Returns:
        `[Q, k]` float32 cosines, best first, and int64 positions in the pool.

    Raises:
        ValueError: Shapes do not fit, the pool is empty, k or chunk_size is out of range, a row
            is zero or not finite, or all candidates point the same way (a collapsed encoder).
    """
    shapes = f"queries {tuple(queries.shape)}, candidates {tuple(candidates.shape)}"
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(f"{shapes}; expected [Q, D] and [C, D] with one D")
    if not 0 < len(candidates) <= MAX_CANDIDATES or not candidates.shape[1]:
        raise ValueError(f"{shapes}; the pool needs 1 .. {MAX_CANDIDATES} candidates and D >= 1")
    if not 1 <= k <= len(candidates):
        raise ValueError(f"k is {k}; allowed 1 .. {len(candidates)}, the number of candidates")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; allowed 1 and above")
    search = TopKSearch(queries, k)
    for start in range(0, len(candidates), chunk_size):
        search.add(candidates[start : start + chunk_size], start)
    if search.common_direction is not None and len(candidates) > 1:
        raise ValueError(
            f"all {len(candidates)} candidate embeddings point the same way, so no ranking exists; "
            "check the encoder's weights and read position"
        )
    return search.result()
