"""A guess of each query's k-th best cosine from a sample of the pool, to drop most rows at once.

Shapes: Q queries, N rows of candidates, D dimensions, G groups of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tracelib.retrieval.cosines import keep_best
from tracelib.retrieval.tiles import Tile

_NUM_RUNS, _RUN_ROWS = 2**11, 2**3  # of the sample
_TILE_RUNS = 2**8
_LEAST_STRIDE = 2  # of runs: a smaller chunk is searched sooner than guessed
_DEVIATIONS, _MORE = 4, 2


def guess_kth_best(
    rows: Tensor, k: int, find_least_best: Callable[[Tile], Tensor | None]
) -> Tensor | None:
    """Return `[Q, 1]` float32 cosines that k rows reach, as good as always.

    The sample holds k times its share of the k best on average, and hardly ever that number, four
    standard deviations and two. The cosine at this rank of the sample is the guess.

    Args:
        rows: `[N, D]` the first chunk of a pool.
        k: Candidates to find per query.
        find_least_best: Gives `[Q, G]` float32, at most the best cosines of groups of a tile's
            rows, or None where nothing is known of them.

    Returns:
        The guess, or None for a small chunk or one with bad rows.
    """
    stride = len(rows) // _NUM_RUNS
    if stride < _LEAST_STRIDE * _RUN_ROWS:
        return None
    runs = rows[: _NUM_RUNS * stride].view(_NUM_RUNS, stride, -1)[:, :_RUN_ROWS]
    num_expected = k * _NUM_RUNS * _RUN_ROWS / len(rows)
    rank = math.ceil(num_expected + _DEVIATIONS * math.sqrt(num_expected)) + _MORE
    best: Tensor | None = None
    for part in torch.split(runs, _TILE_RUNS):
        try:
            groups = find_least_best(Tile(part.flatten(0, 1), 0))
        except ValueError:  # a bad row, which the search names by its place
            return None
        if groups is None:
            return None
        if best is None:
            best = groups.new_full((len(groups), min(rank, k)), -torch.inf)
        best = keep_best(best, groups)
    return None if best is None else best[:, -1:]
