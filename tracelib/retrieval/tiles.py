"""A tile of candidates on its way through a search, and the pairs found in it.

Shapes: N rows of candidates, D dimensions, P pairs of query and candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tracelib.retrieval.coarse import CoarseRows, round_rows
from tracelib.retrieval.cosines import UNIT_STEPS, round_units

_SAFE_NORMS = (2.0**-40, 2.0**40)  # float32 holds their squares


class Tile:
    """Some candidates of a chunk, and what has been computed of them.

    Args:
        rows: `[N, D]` embeddings.
        first_place: Place of the first.
    """

    def __init__(self, rows: Tensor, first_place: int) -> None:
        self._rows = rows
        self._coarse: dict[torch.dtype, CoarseRows] = {}
        self.first_place = first_place
        self.values = rows.float()
        self.norms = torch.linalg.vector_norm(self.values, dim=1, keepdim=True)
        least, most = _SAFE_NORMS
        if not bool(((self.norms > least) & (self.norms < most)).all()):
            # float64 tells bad rows from extreme ones
            self.values = (self.steps / UNIT_STEPS).float()
            self.norms = torch.ones_like(self.norms)

    @cached_property
    def steps(self) -> Tensor:
        """`[N, D]` float64 unit vectors in steps."""
        return round_units(self._rows, "candidate", self.first_place)

    def round(self, coarse_type: torch.dtype) -> CoarseRows:
        """Return the coarse vectors, with one step."""
        if coarse_type not in self._coarse:
            self._coarse[coarse_type] = round_rows(
                self.values, self.norms, coarse_type, one_step=True
            )
        return self._coarse[coarse_type]


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
