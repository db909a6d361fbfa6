"""A block of queries and a tile of candidates in a search, and the pairs found in them.

Shapes: B queries, N rows of candidates, D dimensions, P pairs of query and candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tracelib.retrieval.coarse import CoarseRows, round_rows
from tracelib.retrieval.cosines import UNIT_STEPS, round_units
from tracelib.retrieval.fused import PackedQueries, is_usable

_SAFE_NORMS = (2.0**-40, 2.0**40)  # float32 holds their squares


class QueryBlock:
    """Some queries, and what has been computed of them.

    Args:
        steps: `[B, D]` int32 unit vectors in steps.
    """

    def __init__(self, steps: Tensor) -> None:
        self._steps = steps
        self._coarse: dict[tuple[torch.dtype, int | None], CoarseRows] = {}
        self._packed: dict[int | None, PackedQueries | None] = {}
        self.pause = 0
        """Tiles until a part of the coordinates is worth another try."""

    @cached_property
    def values(self) -> Tensor:
        """`[B, D]` float32 unit vectors."""
        return torch.div(self._steps, UNIT_STEPS)

    def round(self, coarse_type: torch.dtype, num_leading: int | None = None) -> CoarseRows:
        """Return the coarse vectors, each with its step."""
        key = coarse_type, num_leading
        if key not in self._coarse:
            ones = self.values.new_ones(1, 1)
            self._coarse[key] = round_rows(self.values, ones, coarse_type, False, num_leading)
        return self._coarse[key]

    def pack(self, num_leading: int | None = None) -> PackedQueries | None:
        """Return the int8 vectors as a processor compares them at once, None if it does not."""
        if num_leading not in self._packed:
            values = self.round(torch.int8, num_leading).values
            is_packed = values.is_cpu and is_usable(values.shape[1])
            self._packed[num_leading] = PackedQueries(values) if is_packed else None
        return self._packed[num_leading]


class Tile:
    """Some candidates of a chunk, and what has been computed of them.

    Args:
        rows: `[N, D]` embeddings.
        first_place: Place of the first.
    """

    def __init__(self, rows: Tensor, first_place: int) -> None:
        self._rows = rows
        self._coarse: dict[tuple[torch.dtype, int | None], CoarseRows] = {}
        self.first_place = first_place
        self.values = rows.float()
        self.norms = torch.linalg.vector_norm(self.values, dim=1, keepdim=True)
        least, most = (bound.item() for bound in self.norms.aminmax())
        if not _SAFE_NORMS[0] < least <= most < _SAFE_NORMS[1]:
            # float64 tells bad rows from extreme ones
            self.values = (self.steps / UNIT_STEPS).float()
            self.norms = torch.ones_like(self.norms)

    @cached_property
    def steps(self) -> Tensor:
        """`[N, D]` float64 unit vectors in steps."""
        return round_units(self._rows, "candidate", self.first_place)

    def round(self, coarse_type: torch.dtype, num_leading: int | None = None) -> CoarseRows:
        """Return the coarse vectors, with one step."""
        key = coarse_type, num_leading
        if key not in self._coarse:
            self._coarse[key] = round_rows(self.values, self.norms, coarse_type, True, num_leading)
        return self._coarse[key]


class Pairs(NamedTuple):
    """Pairs that may be hits.

    Args:
        query: `[P]` places of the queries.
        row: `[P]` places of the candidates, in their tile or chunk.
        score: `[P]` cosines in float32, not exact.
    """

    query: Tensor
    row: Tensor
    score: Tensor


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Return all pairs of the parts, at least one."""
    query, row, score = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Pairs(query, row, score)


def count_pairs(parts: Sequence[Pairs]) -> int:
    """Return the number of pairs in all parts."""
    return sum(len(pairs.query) for pairs in parts)
