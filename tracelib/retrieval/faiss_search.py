"""FAISS behind the interface of `tracelib.retrieval.search.TopKSearch`, for comparison.

Shapes: Q queries, D dimensions, N rows of candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracelib.retrieval.cosines import UNIT_STEPS, merge_top_k, round_units

_BLOCK_ROWS = 8192


class FaissSearch:
    """The k candidates of highest cosine per query, by FAISS's flat inner product, on the CPU.

    Scores are sums of float32 in FAISS's order, so their last digits, and which of nearly equal
    candidates is found at all, are FAISS's. What it finds comes by score, then by place. The pool
    is held in memory as float32: 4 D bytes a candidate.

    Args:
        queries: `[Q, D]` embeddings of any length and float type.
        k: Candidates to find per query, 1 and above.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: `queries` is no matrix, k is below 1, or a query is zero or not finite.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ImportError("FaissSearch needs FAISS: pip install 'tracelib[faiss]'") from error
        if queries.ndim != 2 or not queries.shape[1]:
            raise ValueError(f"queries {tuple(queries.shape)}; expected [Q, D] with D >= 1")
        if k < 1:
            raise ValueError(f"k is {k}; allowed 1 and above")
        self._k = k
        self._queries = _normalize(queries, "query", 0)
        self._index = faiss.IndexIDMap(faiss.IndexFlatIP(queries.shape[1]))

    def add(self, rows: Tensor, first_place: int) -> None:
        """Take in a chunk of the pool; chunks may come in any order.

        Args:
            rows: `[N, D]` embeddings of any length and float type.
            first_place: Place of the first row in the pool, 0 and above; no place may come twice.

        Raises:
            ValueError: Shape or place do not fit, or a row is zero or not finite.
        """
        num_dimensions = self._queries.shape[1]
        if rows.ndim != 2 or rows.shape[1] != num_dimensions:
            raise ValueError(f"rows {tuple(rows.shape)}; expected [N, {num_dimensions}]")
        if first_place < 0:
            raise ValueError(f"first_place is {first_place}; allowed 0 and above")
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            units = _normalize(block, "candidate", first_place + start)
            places = torch.arange(len(block)) + first_place + start
            self._index.add_with_ids(units.numpy(), places.numpy())

    def result(self) -> tuple[Tensor, Tensor]:
        """Search; return `[Q, min(k, seen)]` float32 cosines, best first, and int64 places."""
        depth = min(self._k, self._index.ntotal)
        if not depth:
            return torch.empty(len(self._queries), 0), torch.empty(len(self._queries), 0).long()
        scores, places = map(torch.from_numpy, self._index.search(self._queries.numpy(), depth))
        scores = scores.masked_fill(places == -1, -torch.inf)  # FAISS's sign for no hit
        return merge_top_k([(scores, places)], depth)


def _normalize(rows: Tensor, side: str, first_place: int) -> Tensor:
    return (round_units(rows.detach().cpu(), side, first_place) / UNIT_STEPS).float()
