"""Reliability: how often what was given a probability is so.

Shapes: N queries, at most B bins that hold some.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_BINS = 15
"""As many as torchmetrics' calibration error has."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Queries by probability, in bins of equal width that hold any.

    Args:
        probability: `[B]` float64 mean probability, rising.
        frequency: `[B]` float64 share of queries whose label is 1.
        counts: `[B]` int64 queries.
    """

    probability: Tensor
    frequency: Tensor
    counts: Tensor

    @property
    def calibration_error(self) -> float:
        """The expected calibration error (ECE), 0 .. 1: mean gap over queries."""
        gaps = (self.probability - self.frequency).abs() * self.counts
        return (gaps.sum() / self.counts.sum()).item()


def bin_probabilities(probability: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> Reliability:
    """Return how probabilities and labels agree.

    Args:
        probability: `[N]` in 0 .. 1.
        labels: `[N]` 0 or 1.
        num_bins: Bins from 0 to 1; an upper edge belongs to the bin above.

    Raises:
        ValueError: There are no queries, the lengths differ, or a value is out of range.

    >>> found = bin_probabilities(torch.tensor([0.1, 0.1, 0.9]), torch.tensor([0, 1, 1]))
    >>> found.frequency.tolist(), found.counts.tolist(), round(found.calibration_error, 3)
    ([0.5, 1.0], [2, 1], 0.3)
    """
    if probability.shape != labels.shape or probability.ndim != 1 or not len(labels):
        shapes = f"{tuple(probability.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"probability and labels have shapes {shapes}; expected one [N], N >= 1")
    for name, values in (("probability", probability), ("labels", labels)):
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"{name} has {values.min()} .. {values.max()}, allowed 0 .. 1")
    place = (probability.double() * num_bins).long().clamp(max=num_bins - 1)
    counts = torch.bincount(place, minlength=num_bins)
    means = [
        torch.bincount(place, weights=values.double(), minlength=num_bins) / counts
        for values in (probability, labels)
    ]
    held = counts > 0
    return Reliability(means[0][held], means[1][held], counts[held])
