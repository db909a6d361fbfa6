"""Cosine search with everything scored: in Python floats, and to the last bit in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def search(queries: Tensor, candidates: Tensor, k: int) -> list[list[tuple[float, int]]]:
    """Return (cosine, position) of the best k per query, ties by position."""
    rankings = []
    for query in queries.tolist():
        hits = [(cosine(query, row), i) for i, row in enumerate(candidates.tolist())]
        rankings.append(sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:k])
    return rankings


def round_unit_vectors(rows: Tensor) -> Tensor:
    """Return unit vectors in whole steps of 2^-26, the norm from squares folded in halves."""
    values = rows.double()
    squares = values.square()
    while squares.shape[1] > 1:
        if squares.shape[1] % 2:
            squares = torch.cat([squares, torch.zeros(len(squares), 1)], dim=1)
        half = squares.shape[1] // 2
        squares = squares[:, :half] + squares[:, half:]
    return (values / squares.sqrt() * 2**26).round()


def search_to_the_bit(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return float32 scores in steps of 2^-24 and positions of the best k, ties by position."""
    products = round_unit_vectors(queries) @ round_unit_vectors(candidates).T
    scores = (products / 2**28).round().clamp(-(2**24), 2**24) / 2**24
    found = scores.sort(dim=1, descending=True, stable=True)
    return found.values[:, :k].float(), found.indices[:, :k]
