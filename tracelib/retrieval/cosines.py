"""Cosines to the last bit, and hits as integers that sort.

A score depends on its two rows alone: equal candidates tie to the last bit wherever they stand, so
pool order can break ties. A plain matmul does not give that, since its order of summation varies
with the shape of the chunk and the place in it. Here all rounding happens outside the sum. Unit
vectors are rounded to multiples of 2^-26, so that products are multiples of 2^-52 and, by
Cauchy-Schwarz, partial sums stay below 2: float64 holds them all, in whatever order. Scores are
then rounded to multiples of 2^-24, which float32 holds.

Shapes: Q queries, N rows of either side, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

UNIT_STEPS = 2**26
"""Steps of a coordinate in one."""

MAX_CANDIDATES = 2**32
"""Places are below it."""

NO_HIT = -0x7F800001 * MAX_CANDIDATES
"""The key of a score of -inf, whatever its place."""

_SCORE_STEPS = 2**24


def round_units(rows: Tensor, side: str, first_place: int) -> Tensor:
    """Return the unit vectors of rows as whole float64 numbers of steps of 2^-26.

    The squares are summed by folding halves, elementwise: a library reduction may order them by
    the number of rows, and the norm has to depend on its row only.

    Args:
        rows: `[N, D]` of any length and float type.
        side: What to call them in an error.
        first_place: Place of the first row.

    Raises:
        ValueError: A row is zero or not finite.
    """
    values = rows.double()
    squares = values.square()
    while squares.shape[1] > 1:
        if squares.shape[1] % 2:
            squares = functional.pad(squares, (0, 1))
        left, right = squares.chunk(2, dim=1)
        squares = left + right
    norms = squares.sqrt()
    bad = (~norms.isfinite() | (norms == 0)).flatten().nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"{side} row {row + first_place} has norm {norms[row].item()}; embeddings must be "
            "finite and not zero"
        )
    # a norm that is not zero is 2^-537 at least, so the power of two rounds nothing
    return (values / (norms / UNIT_STEPS)).round_()


def round_scores(products: Tensor) -> Tensor:
    """Return float32 scores from float64 products of vectors in steps."""
    scores = (products * (_SCORE_STEPS / UNIT_STEPS**2)).round_()
    return scores.clamp_(-_SCORE_STEPS, _SCORE_STEPS).float().div_(_SCORE_STEPS)


def encode_hits(scores: Tensor, places: Tensor) -> Tensor:
    """Return one int64 key per hit: the higher score, then the lower place, has the higher key.

    Keys differ, so any top-k routine orders them alike. The upper half is the score's bits, which
    sort as the numbers do once those of negative numbers are flipped.
    """
    bits = (scores.float() + 0.0).view(torch.int32).long()  # -0.0 + 0.0 is 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = ordered * MAX_CANDIDATES + (MAX_CANDIDATES - 1 - places)
    return torch.where(scores == -torch.inf, NO_HIT, keys)


def decode_hits(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 scores and int64 places of keys; -inf and -1 for `NO_HIT`."""
    ordered = keys >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    places = MAX_CANDIDATES - 1 - (keys & (MAX_CANDIDATES - 1))
    return bits.int().view(torch.float32), torch.where(keys == NO_HIT, -1, places)


def keep_best(best: Tensor, values: Tensor) -> Tensor:
    """Return the highest of `best` `[Q, K]` and `values` `[Q, N]` per query, as many as `best`."""
    return torch.cat([best, values], dim=1).topk(best.shape[1], dim=1).values


def keep_best_of_pairs(best: Tensor, query: Tensor, values: Tensor) -> None:
    """Merge values `[P]` into the `best` `[Q, K]` of the queries `[P]` they belong to, in place."""
    order = values.argsort(descending=True)
    order = order[query[order].argsort(stable=True)]
    owners, owner, counts = torch.unique_consecutive(
        query[order], return_inverse=True, return_counts=True
    )
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(dim=0) - counts)[owner]
    kept = rank < best.shape[1]
    table = best[owners]
    lowest = table.new_full((len(owners), int(rank[kept].max()) + 1), _find_lowest(best.dtype))
    lowest[owner[kept], rank[kept]] = values[order[kept]]
    best[owners] = keep_best(table, lowest)


def merge_top_k(parts: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Return the best of several searches of the same queries, ties by place.

    Args:
        parts: Scores `[Q, K]` and int64 places `[Q, K]` of each; K may differ. A score of -inf,
            whatever its place, says that a part has no more.
        k: Candidates to keep per query, 1 and above.

    Returns:
        `[Q, min(k, sum of K)]` float32 scores, best first, and places; -inf and -1 where there are
        no more.

    Raises:
        ValueError: There are no parts, they do not fit together, or k is below 1.

    Example:
        >>> ours = torch.tensor([[0.9, 0.5]]), torch.tensor([[7, 2]])
        >>> theirs = torch.tensor([[0.5, -torch.inf]]), torch.tensor([[1, -1]])
        >>> merge_top_k([ours, theirs], k=4)[1].tolist()
        [[7, 1, 2, -1]]
    """
    shapes = [(tuple(scores.shape), tuple(places.shape)) for scores, places in parts]
    fit = all(len(scores) == 2 and scores == places for scores, places in shapes)
    if not fit or len({scores[0] for scores, _ in shapes}) != 1:
        raise ValueError(f"parts of shapes {shapes}; expected one or more pairs of [Q, K], one Q")
    if k < 1:
        raise ValueError(f"k is {k}; allowed 1 and above")
    keys = torch.cat([encode_hits(scores, places) for scores, places in parts], dim=1)
    return decode_hits(keys.topk(min(k, keys.shape[1]), dim=1).values)


def _find_lowest(number_type: torch.dtype) -> float:
    """Return what is below every score or key."""
    return -torch.inf if number_type.is_floating_point else NO_HIT
