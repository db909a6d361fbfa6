"""Maps from raw to calibrated probabilities, fitted to labels. Shape: N queries.

References:
    Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), section 4.2;
    Zadrozny and Elkan, Transforming Classifier Scores into Accurate Multiclass Probability
    Estimates (KDD 2002).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Knots = tuple[tuple[float, ...], tuple[float, ...]]
"""Raw probabilities, strictly rising from 0 to 1, and what each becomes; linear in between."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
CLOSEST = 2.0**-25
"""Half the step of float32 below 1: how near to 1 a probability is taken for that was rounded to 1,
and how near to 0 at most."""
_NUM_LOGITS = 129


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T for which sigmoid(logits / T) explains the labels best.

    The negative log likelihood is convex in 1 / T. Where it falls up to an end of the allowed
    range, that end is returned: 0.05 where the sign of the logits tells all labels, as ever
    smaller temperatures would be better still, and 20 where larger logits do not mean larger
    labels.

    Args:
        logits: `[N]` finite.
        labels: `[N]` in 0 .. 1.

    Returns:
        T in 0.05 .. 20.

    Raises:
        ValueError: There are no queries, or a logit or label is out of range.

    >>> logits = torch.tensor([3.0, 3.0, 3.0, 3.0])
    >>> round(fit_temperature(logits, torch.tensor([1, 1, 1, 0])), 6)  # 3 / log(3)
    2.730718
    """
    z, y = check_pairs("logit", logits, labels, -math.inf, math.inf)

    def compute_slope(inverse: float) -> float:
        return float((z * (torch.sigmoid(inverse * z) - y)).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if compute_slope(high) <= 0:
        return MIN_TEMPERATURE
    if compute_slope(low) >= 0:
        return MAX_TEMPERATURE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if compute_slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def fit_isotonic(probabilities: Tensor, labels: Tensor) -> Knots:
    """Return the rising map of probabilities that comes closest to the labels in squares.

    Exact, by pooling adjacent violators; equal probabilities are one point. Between points the map
    is linear, beyond the first and the last it is level.

    Args:
        probabilities: `[N]` in 0 .. 1.
        labels: `[N]` in 0 .. 1.

    Returns:
        Raw probabilities, strictly rising from 0 to 1, and what each becomes.

    Raises:
        ValueError: There are no queries, or a probability or label is out of range.

    >>> fit_isotonic(torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0, 1, 0]))
    ((0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.5, 0.5, 0.5))
    """
    p, y = check_pairs("probability", probabilities, labels, 0, 1)
    points, place, sizes = torch.unique(p, return_inverse=True, return_counts=True)
    sums = torch.zeros_like(points).index_add(0, place, y)
    blocks: list[tuple[float, float, float, int]] = []  # first point, last, sum, size
    for point, total, size in zip(points.tolist(), sums.tolist(), sizes.tolist(), strict=True):
        first = point
        while blocks and blocks[-1][2] / blocks[-1][3] >= total / size:
            first, _, more_total, more_size = blocks.pop()
            total, size = total + more_total, size + more_size
        blocks.append((first, point, total, size))
    knots = {0.0: blocks[0][2] / blocks[0][3]}
    for first, last, total, size in blocks:
        knots[first] = knots[last] = total / size
    knots.setdefault(1.0, blocks[-1][2] / blocks[-1][3])
    return tuple(knots), tuple(knots.values())


def place_temperature_knots(temperature: float) -> Knots:
    """Return knots of p -> sigmoid(logit(p) / T), close enough to be linear between them.

    They are even in the logit before and after division. Probabilities nearer to 0 or 1 than
    `CLOSEST` are taken for that near.
    """
    limit = torch.logit(torch.tensor(1 - CLOSEST, dtype=torch.float64))
    grid = torch.linspace(-1, 1, _NUM_LOGITS, dtype=torch.float64) * limit
    logits = torch.unique(torch.cat([grid, (grid * temperature).clamp(-limit, limit)]))
    raw, levels = torch.sigmoid(logits), torch.sigmoid(logits / temperature).cummax(0).values
    is_new = torch.cat([torch.ones(1, dtype=torch.bool), raw.diff() > 0])
    calibrated = levels[is_new].tolist()
    return (0.0, *raw[is_new].tolist(), 1.0), (calibrated[0], *calibrated, calibrated[-1])


def check_pairs(
    name: str, values: Tensor, labels: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Return values and labels in float64, checked.

    Args:
        name: What the values are.
        values: `[N]` in `low` .. `high`.
        labels: `[N]` in 0 .. 1.
        low: Least value allowed.
        high: Largest value allowed.

    Raises:
        ValueError: There are no queries, or a value or label is out of range.
    """
    if values.shape != labels.shape or values.ndim != 1 or not len(values):
        shapes = f"{tuple(values.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"{name} and label have shapes {shapes}; expected one [N], N at least 1")
    for kind, found, least, most in ((name, values, low, high), ("label", labels, 0, 1)):
        bad = ~(found.isfinite() & (found >= least) & (found <= most))
        if bool(bad.any()):
            place = int(bad.nonzero()[0])
            raise ValueError(f"{kind} {place} is {found[place].item()}, allowed {least} .. {most}")
    return values.double(), labels.double()
