"""Coarse cosines that tell which candidates cannot be hits, by a bound that always holds.

Unit vectors q and c are rounded to coarse q' and c', of numbers that multiply fast. The cosine is
q'c' + q'(c - c') + (q - q')c, so by Cauchy-Schwarz within |q'| |c - c'| + |q - q'| of q'c'. The
distances are measured. Coarse numbers are whole (int8) or have 8 significant bits (bfloat16, also
where multiplied as float32), so float32 holds the product of any two; what its sums may lose is
`find_slack`. Where only the leading coordinates are multiplied, the others add at most the product
of their lengths, and distances are the most that rounding allows.

Shapes: B queries of a block, N rows of a tile of candidates, D dimensions, L leading ones.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional

COARSE_TYPES = (torch.int8, torch.bfloat16, torch.float32)
"""Number types to multiply coarse vectors in; float32 is for machines slow at the others."""

_INT8_MAX = 127
_INT8_MAX_DIMENSIONS = 2**31 // _INT8_MAX**2 - 1
_WORTHWHILE = 0.7  # of the finer type's time
_NUM_TIMINGS = 3
# Of a step. A coordinate of up to 127 steps is scaled by two rounded factors and rounded itself,
# each by 2^-24 of it: 127 * 3 * 2^-24 < 0.00003 beside the half. Float32 of the bound takes less.
_MAX_GAP = 0.5001
_MIN_STEP = 2.0**-60  # where leading coordinates are all zero
_GROUP_ROWS = 32


@dataclass(frozen=True)
class CoarseRows:
    """Coarse vectors, `values * step`, of a block of queries or a tile.

    Args:
        values: `[N, L]` numbers of a coarse type.
        step: `[N, 1]` or `[1, 1]` float64.
        distance: `[N, 1]` float32 distance of each unit vector's leading part from its coarse one,
            or more.
        rest: `[N, 1]` float32 length of what follows the leading part of each unit vector.
        slack: What float32 may lose of a cosine.
    """

    values: Tensor
    step: Tensor
    distance: Tensor
    rest: Tensor
    slack: float

    @cached_property
    def query_errors(self) -> Tensor:
        """`[N, 3]` float64, what each query brings to the bound of `bound_errors`."""
        distance = self.distance.double()
        return torch.cat([distance + self.slack, 1 + distance, self.rest.double()], dim=1)

    @cached_property
    def row_errors(self) -> Tensor:
        """`[3, 1]` float64, what the rows bring to it at most."""
        distance, rest = self.distance.max(), self.rest.max()
        return torch.stack([torch.ones_like(rest), distance, rest]).double()[:, None]


def round_rows(
    rows: Tensor,
    norms: Tensor,
    coarse_type: torch.dtype,
    one_step: bool,
    num_leading: int | None = None,
) -> CoarseRows:
    """Return coarse vectors of the directions of rows.

    Args:
        rows: `[N, D]` float32.
        norms: `[N, 1]` their lengths.
        coarse_type: One of `COARSE_TYPES`.
        one_step: Whether all have the same step, so that one threshold serves all.
        num_leading: L, by default D.
    """
    rest = torch.linalg.vector_norm(rows[:, num_leading or rows.shape[1] :], dim=1, keepdim=True)
    slack, rows = find_slack(rows.shape[1]), rows[:, :num_leading]
    if coarse_type is torch.int8:
        peaks = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)) / norms
        step = (peaks.amax(0, keepdim=True) if one_step else peaks) / _INT8_MAX
        step = step.clamp_min_(_MIN_STEP)
        scale = (norms * step).reciprocal_()
        rounded = (rows * scale).round_()
        values = rounded.to(coarse_type)
        if num_leading:  # half a step at most; that is little beside the rest
            distance = (_MAX_GAP * math.sqrt(num_leading) * step).expand(len(rows), 1)
        else:
            # what is left, in the place of the rounded: a tile is larger than a cache
            gaps = rounded.addcmul_(rows, scale, value=-1)
            distance = torch.linalg.vector_norm(gaps, dim=1, keepdim=True) * step
    else:
        units, step = rows / norms, rows.new_ones(1, 1)
        values = units.bfloat16().to(coarse_type)
        distance = torch.linalg.vector_norm(units.sub_(values), dim=1, keepdim=True)
    return CoarseRows(values, step.double(), distance, rest / norms, slack)


def multiply(queries: Tensor, rows: Tensor) -> Tensor:
    """Return products `[B, N]` of coarse values, in int32, bfloat16 or float32."""
    return torch._int_mm(queries, rows.T) if queries.dtype is torch.int8 else queries @ rows.T


def sample_products(queries: Tensor, rows: Tensor, query: Tensor, row: Tensor) -> Tensor:
    """Return `[P]` products of some pairs of `queries` `[B, D]` and `rows` `[N, D]`, on a CPU.

    Args:
        queries: Float32 vectors.
        rows: Float32 vectors.
        query: `[P]` the pairs' queries, in rising order.
        row: `[P]` the pairs' rows, rising for each query.
    """
    edges = torch.zeros(len(queries) + 1, dtype=torch.long)
    torch.cumsum(torch.bincount(query, minlength=len(queries)), 0, out=edges[1:])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        pairs = torch.sparse_csr_tensor(
            edges,
            row,
            queries.new_zeros(len(row)),
            (len(queries), len(rows)),
            check_invariants=False,
        )
        products: Tensor = torch.sparse.sampled_addmm(pairs, queries, rows.T, beta=0.0).values()
    return products


def find_slack(num_dimensions: int) -> float:
    """Return what float32 may lose of a cosine: D additions, D squares of a norm, and some more.

    An addition counts 2^-23, which covers one that truncates, too.
    """
    return (2 * num_dimensions + 64) * 2.0**-23


def find_reaching(
    products: Tensor, queries: CoarseRows, rows: CoarseRows, scores: Tensor, max_share: float
) -> tuple[Tensor, Tensor] | None:
    """Return the pairs whose cosine may be as high as the query's score.

    The threshold is rounded the way the products were, which keeps order, so none is lost by it.

    Args:
        products: `[B, N]` of their coarse values.
        queries: The queries, each with its own step.
        rows: The candidates, with one step.
        scores: `[B, 1]`, all finite.
        max_share: Share of all pairs up to which it is worth naming them, above 0.

    Returns:
        Query and row of each pair, or None for more than about `max_share`.
    """
    least = (scores - bound_errors(queries, rows)).div_(queries.step * rows.step)
    if products.dtype is torch.int32:
        limits = torch.iinfo(torch.int32)
        least = least.floor_().clamp_(limits.min, limits.max)
    # few do: the best of a group tells of all its rows, in a fraction of the time
    least, num_rows = least.to(products.dtype), products.shape[1]
    if num_rows % _GROUP_ROWS:
        products = functional.pad(products, (0, -num_rows % _GROUP_ROWS))
    groups = products.reshape(len(products), -1, _GROUP_ROWS)
    found = (groups.amax(dim=2) >= least).flatten().nonzero().flatten()
    max_pairs = max_share * groups.numel()
    if len(found) > max_pairs:
        return None
    query, group = found // groups.shape[1], found % groups.shape[1]
    # whole rows at once: far cheaper than an index per dimension
    reaches = groups.flatten(0, 1).index_select(0, found) >= least.index_select(0, query)
    if int(reaches.count_nonzero()) > max_pairs:  # naming them would cost memory for nothing
        return None
    pair, member = reaches.nonzero(as_tuple=True)
    query, row = query.index_select(0, pair), group.index_select(0, pair) * _GROUP_ROWS + member
    if num_rows % _GROUP_ROWS:
        is_row = row < num_rows
        return query[is_row], row[is_row]
    return query, row


def find_least_best(products: Tensor, queries: CoarseRows, rows: CoarseRows) -> Tensor:
    """Return `[B, G]` float32, at most the best cosine of each group of rows to each query.

    Args:
        products: `[B, N]` of their coarse values; what is left of N after whole groups is not
            looked at.
        queries: The queries, each with its own step.
        rows: The candidates, with one step.
    """
    num_groups = products.shape[1] // _GROUP_ROWS
    groups = products[:, : num_groups * _GROUP_ROWS].reshape(len(products), -1, _GROUP_ROWS)
    best = groups.amax(dim=2) * (queries.step * rows.step)
    if products.dtype is torch.bfloat16:  # it was rounded by up to 2^-8 of what it was
        best -= best.abs() * 2.0**-7
    return (best - bound_errors(queries, rows)).float()


def bound_errors(queries: CoarseRows, rows: CoarseRows) -> Tensor:
    """Return `[B, 1]` float64, the most that any cosine can differ from its coarse product.

    That is |q - q'| + slack, (1 + |q - q'|) |c - c'| and the product of the rests.
    """
    return queries.query_errors @ rows.row_errors


def is_accurate(products: Tensor, queries: Tensor, rows: Tensor) -> bool:
    """Whether products of coarse values are as exact as `find_reaching` takes them to be."""
    expected = queries.double() @ rows.double().T
    error = (products.double() - expected).abs()
    if products.is_floating_point():  # the other half of the slack is for norms
        error -= find_slack(queries.shape[1]) / 2
    if products.dtype is torch.bfloat16:
        error -= expected.abs() * 2.0**-8
    return bool((error <= 0).all())


def choose_types(
    queries: Tensor,
    rows: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
    wanted: Sequence[torch.dtype] | None = None,
) -> list[torch.dtype]:
    """Return the coarse types to filter by here, in order; those found inaccurate are left out.

    Args:
        queries: `[B, D]` float32 unit vectors, a sample.
        rows: `[N, D]` float32 unit vectors, a sample.
        product: How coarse values are multiplied, such as `multiply`.
        wanted: The types to use if they are accurate. By default the faster of bfloat16 and
            float32, and before it int8 where that is much faster still.
    """
    ones = queries.new_ones(1, 1)
    seconds = {}
    for coarse_type in COARSE_TYPES if wanted is None else wanted:
        ours = round_rows(queries, ones, coarse_type, one_step=False).values
        theirs = round_rows(rows, ones, coarse_type, one_step=True).values
        if coarse_type is torch.int8:  # some machines add pairs of products in 16 bits
            ours[0] = theirs[0] = _INT8_MAX
        if _is_safe(ours) and is_accurate(product(ours, theirs), ours, theirs):
            seconds[coarse_type] = find_fastest_seconds(partial(product, ours, theirs))
    if wanted is not None:
        return list(seconds)
    coarse = seconds.pop(torch.int8, None)
    chosen = sorted(seconds, key=seconds.__getitem__)[:1]
    if coarse is not None and (not chosen or coarse < _WORTHWHILE * seconds[chosen[0]]):
        chosen.insert(0, torch.int8)
    return chosen


def _is_safe(values: Tensor) -> bool:
    """Whether int32 holds any sum of int8, and the device has no habits of its own.

    CUDA may round partial sums of bfloat16, and its int8 takes some shapes only. That it may round
    the factors of float32 does no harm: they have few enough bits.
    """
    if values.device.type != "cpu":
        return values.dtype is torch.float32
    # torch 2.13 leaves the result of one dimension in int8 unwritten
    return values.dtype is not torch.int8 or 1 < values.shape[1] <= _INT8_MAX_DIMENSIONS


def find_fastest_seconds(product: Callable[[], Tensor]) -> float:
    """Return the seconds of the fastest of some equal products."""
    seconds = []
    for _ in range(_NUM_TIMINGS):
        start = time.perf_counter()
        product()[0, 0].item()  # a device answers when it is done
        seconds.append(time.perf_counter() - start)
    return min(seconds)
