"""Int8 products that are compared with thresholds as they are made, on CPUs where oneDNN does so.

A product of int8 takes four bytes to write and to look at again, its comparison one. oneDNN
multiplies unsigned by signed bytes, adds a number per query and rounds to a byte, of which only 0
says no. torch compiles quantized models to the same operator; it is not documented, so it is
tried out before use.

Shapes: B queries of a block, N rows of a tile of candidates, L coordinates.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from tracelib.retrieval.coarse import CoarseRows, bound_errors, find_fastest_seconds, multiply

_OFFSET = 128  # from signed to unsigned
_WORD = 8  # bytes looked at at once
_UNIT = 64  # of a product to a step of a byte, which only tells whether the threshold is reached
# A sum is below 2^28, so in steps float32 errs by 1/8 there and by 1/4 in the number added: less
# than the half that rounding forgives.
_MAX_DIMENSIONS = 2**13
_MOST = 2.0**40
# Products this small are mostly overhead, a few times that of plain ones; where oneDNN has no code
# for the processor it takes hundreds of times as long, which larger ones would make a long wait.
_PROBE_QUERIES, _PROBE_ROWS = 64, 256
_MOST_SLOWER = 20


class PackedQueries:
    """Int8 queries, laid out for oneDNN.

    Args:
        values: `[B, L]` int8.
    """

    def __init__(self, values: Tensor) -> None:
        self.num_queries = len(values)
        padded = functional.pad(values, (0, 0, 0, -len(values) % _WORD))
        self._weights = torch.ops.onednn.qlinear_prepack(padded, None)
        self._scales = torch.full((len(padded),), 1 / _UNIT)
        self._zeros = torch.zeros(len(padded), dtype=torch.long)
        self._offsets = _OFFSET * values.sum(dim=1, dtype=torch.long).double()

    def mark_reaching(self, rows: Tensor, least: Tensor) -> Tensor:
        """Return bytes `[N, B']`, B padded, not 0 where a product reaches the query's threshold.

        Products up to 64 below it may be marked, too.

        Args:
            rows: `[N, L]` int8.
            least: `[B]` float64, the thresholds.
        """
        bias = (1 - (self._offsets + least) / _UNIT).clamp_(-_MOST, _MOST)  # 1 at the threshold
        bias = functional.pad(bias.float(), (0, len(self._scales) - len(bias)), value=-_MOST)
        unsigned = rows.view(torch.uint8) + _OFFSET
        marks: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 0, self._weights, self._scales, self._zeros, bias, 1.0, 0, torch.uint8,
            "none", [], "",
        )  # fmt: skip
        return marks


def find_reaching(
    queries: CoarseRows, packed: PackedQueries, rows: CoarseRows, scores: Tensor, max_share: float
) -> tuple[Tensor, Tensor] | None:
    """Return the pairs whose cosine may be as high as the query's score, by their int8 products.

    Args:
        queries: The queries, each with its own step.
        packed: Their values.
        rows: The candidates, with one step.
        scores: `[B, 1]`, all finite.
        max_share: Share of all pairs up to which it is worth naming them, above 0.

    Returns:
        Query, rising, and row of each pair, or None for more than about `max_share`.
    """
    least = (scores - bound_errors(queries, rows)).div_(queries.step * rows.step)
    marks = packed.mark_reaching(rows.values, least[:, 0])
    words = marks.view(torch.int64)  # few hold a mark
    max_pairs = max_share * len(rows.values) * packed.num_queries
    found = words.flatten().nonzero().flatten()
    if len(found) > max_pairs:
        return None
    is_marked = marks.view(-1, _WORD).index_select(0, found)
    if int(is_marked.count_nonzero()) > max_pairs:
        return None
    word, byte = is_marked.nonzero(as_tuple=True)
    found = found.index_select(0, word)
    query, order = (found % words.shape[1] * _WORD + byte).sort(stable=True)
    return query, (found // words.shape[1]).index_select(0, order)


@cache
def is_usable(num_dimensions: int) -> bool:
    """Whether int8 vectors of so many coordinates are multiplied right here, and fast.

    Without code for the processor, oneDNN is slow, and some processors add pairs of products in 16
    bits, which the greatest exceed.
    """
    if num_dimensions > _MAX_DIMENSIONS:
        return False
    random = torch.Generator().manual_seed(0)
    try:
        queries, rows = (
            torch.randint(-127, 128, (num_rows, num_dimensions), generator=random).to(torch.int8)
            for num_rows in (_PROBE_QUERIES, _PROBE_ROWS)
        )
        queries[0] = rows[0] = 127
        queries[1] = -127
        packed, exact = PackedQueries(queries), multiply(queries, rows).double()
        for threshold in (exact.amin(1), exact.median(1).values, exact.amax(1)):
            marks = packed.mark_reaching(rows, threshold)[:, : len(queries)].T != 0
            is_near = exact >= threshold[:, None] - _UNIT
            if not (marks[exact >= threshold[:, None]].all() and is_near[marks].all()):
                return False
        ours = find_fastest_seconds(lambda: packed.mark_reaching(rows, exact[:, 0]))
        return ours < _MOST_SLOWER * find_fastest_seconds(lambda: multiply(queries, rows))
    except (AttributeError, RuntimeError, TypeError):  # another torch, or one without oneDNN
        return False
