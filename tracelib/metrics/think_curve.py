"""The think-rate curve: what a router's order of queries is worth at every share that thinks.

One pass without thought and one with it for every query tell all of the curve: at a think rate r
the round(r * Q) queries of highest priority have the score of their thought, all others that of
their direct embedding. Queries of equal priority are taken in any order, and what is reported is
the mean over those orders, in closed form. So a constant priority is the `random` gate, a straight
line; a gate's yes and no is a line with one bend; and `compute_gains` as priority is the oracle.

Shape: Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

THINK_RATES = tuple(tenth / 10 for tenth in range(11))
"""Shares of queries that think at which a curve is reported."""


@dataclass(frozen=True)
class ThinkCurve:
    """The mean score by think rate.

    Args:
        scores: At each of `THINK_RATES`; halves of a query are rounded up.
        area: Mean of the curve from rate 0 to 1, straight between all Q + 1 rates there are.
        area_fraction: Where the area lies from that of `random`, 0, to that of the oracle, 1; below
            0 where the order is worse than none. NaN where all queries gain alike.
    """

    scores: tuple[float, ...]
    area: float
    area_fraction: float


def trace_think_curve(
    direct_scores: Tensor, thought_scores: Tensor, priority: Tensor, weights: Tensor | None = None
) -> ThinkCurve:
    """Trace the mean score over all think rates.

    Args:
        direct_scores: `[Q]` score of each query's direct embedding, e.g. 1 for a hit at 5.
        thought_scores: `[Q]` the same after thought.
        priority: `[Q]` queries think from the highest on; may be infinite, not NaN.
        weights: `[Q]` share of each query in the mean, as of `weight_columns_equally`; equal by
            default.

    Raises:
        ValueError: Shapes differ, there are no queries, a value is not finite or a weight negative.

    >>> curve = trace_think_curve(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([9, 2]))
    >>> curve.scores[0], curve.scores[5], curve.area, curve.area_fraction
    (0.5, 1.0, 0.75, 1.0)
    """
    gains = compute_gains(direct_scores, thought_scores, weights)
    if priority.shape != gains.shape or bool(priority.isnan().any()):
        raise ValueError(
            f"priority has shape {tuple(priority.shape)} and {int(priority.isnan().sum())} NaN; "
            f"expected {tuple(gains.shape)} and none"
        )
    base = (direct_scores * _normalise(direct_scores, weights)).sum()
    curve = base + _accumulate(gains, priority)
    area, oracle = _measure(curve), _measure(base + _accumulate(gains, gains))
    random = ((curve[0] + curve[-1]) / 2).item()
    is_flat = bool(gains.min() == gains.max())
    places = [(tenth * len(gains) + 5) // 10 for tenth in range(11)]
    return ThinkCurve(
        scores=tuple(curve[places].tolist()),
        area=area,
        area_fraction=torch.nan if is_flat else (area - random) / (oracle - random),
    )


def compute_gains(
    direct_scores: Tensor, thought_scores: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return what the mean score gains when each query thinks; as a priority it is the oracle.

    Args:
        direct_scores: `[Q]` score of each query's direct embedding.
        thought_scores: `[Q]` the same after thought.
        weights: `[Q]` share of each query in the mean; equal by default.

    Returns:
        `[Q]` float64.

    Raises:
        ValueError: Shapes differ, there are no queries, a value is not finite or a weight negative.

    >>> compute_gains(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])).tolist()
    [0.5, -0.5]
    """
    share = _normalise(direct_scores, weights)
    for name, values in (("direct_scores", direct_scores), ("thought_scores", thought_scores)):
        if values.shape != share.shape or values.ndim != 1:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)} beside {tuple(share.shape)}; expected [Q]"
            )
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} holds {values[~values.isfinite()][0].item()}; not finite")
    return (thought_scores.double() - direct_scores.double()) * share


def weight_columns_equally(column_codes: Tensor) -> Tensor:
    """Return the weights under which a mean over queries is the mean over columns of their means.

    Args:
        column_codes: `[Q]` int64, the same number for queries of one column.

    Returns:
        `[Q]` float64 of sum 1.

    >>> weight_columns_equally(torch.tensor([4, 7, 7, 7, 7])).tolist()
    [0.5, 0.125, 0.125, 0.125, 0.125]
    """
    _, place, sizes = torch.unique(column_codes, return_inverse=True, return_counts=True)
    weights: Tensor = 1 / (len(sizes) * sizes[place].double())
    return weights


def mix_queries_per_second(
    think_rate: float, direct_seconds: float, thought_seconds: float
) -> float:
    """Return the speed at a think rate, from the two pure ones.

    Args:
        think_rate: Share of queries that think, 0 .. 1.
        direct_seconds: Time of embedding one query without thought.
        thought_seconds: The same with thought.

    Raises:
        ValueError: A value is out of range.

    >>> mix_queries_per_second(0.5, 0.1, 0.3)
    5.0
    """
    if not (0 <= think_rate <= 1 and direct_seconds > 0 and thought_seconds > 0):
        raise ValueError(
            f"think_rate is {think_rate}, direct_seconds {direct_seconds}, thought_seconds "
            f"{thought_seconds}; allowed is a rate in 0 .. 1 and times above 0"
        )
    return 1 / ((1 - think_rate) * direct_seconds + think_rate * thought_seconds)


def _normalise(scores: Tensor, weights: Tensor | None) -> Tensor:
    """Return `[Q]` weights of sum 1, checked."""
    found = torch.ones_like(scores) if weights is None else weights
    if not found.numel() or bool(~(found >= 0).all()) or not 0 < float(found.sum()) < torch.inf:
        raise ValueError(
            f"weights of {found.numel()} queries have sum {float(found.sum())}; expected at least "
            "one, none below 0, and one above"
        )
    return found.double() / found.double().sum()


def _accumulate(gains: Tensor, priority: Tensor) -> Tensor:
    """Return `[Q + 1]` gains of the first 0, 1 .. Q queries; equals share theirs evenly."""
    _, place, sizes = torch.unique(priority, return_inverse=True, return_counts=True)
    means = torch.zeros(len(sizes), dtype=gains.dtype, device=gains.device)
    means = means.index_add(0, place, gains) / sizes
    steps = means.flip(0).repeat_interleave(sizes.flip(0))
    return torch.cat([gains.new_zeros(1), steps.cumsum(0)])


def _measure(curve: Tensor) -> float:
    """Return the mean of a curve that is straight between evenly spaced points."""
    return torch.trapezoid(curve).item() / (len(curve) - 1)
