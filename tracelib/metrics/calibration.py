"""How far the router's probability of thinking is from the share of queries that need it.

Shapes: N queries.
"""

from __future__ import annotations

from torch import Tensor


def expected_calibration_error(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> Tensor:
    """Return the mean gap of predicted and observed frequency, over bins of equal width.

    Args:
        probabilities: `[N]` predicted probability of label 1, in 0 .. 1.
        labels: `[N]` outcomes, 0 or 1.
        num_bins: Bins that divide 0 .. 1, each weighted by its number of queries; at least 1.

    Returns:
        A float32 scalar in 0 .. 1.

    Raises:
        ValueError: No query, shapes that differ, or a value out of its range.

    References:
        Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), section 2.

    >>> from torch import tensor
    >>> expected_calibration_error(tensor([0.75, 0.75]), tensor([1, 0]))
    tensor(0.2500)
    """
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; expected at least 1")
    shapes = tuple(probabilities.shape), tuple(labels.shape)
    if probabilities.ndim != 1 or shapes[0] != shapes[1] or not len(labels):
        raise ValueError(f"probabilities {shapes[0]} and labels {shapes[1]}; expected [N], N >= 1")
    predicted, observed = probabilities.double(), labels.double()
    if not ((predicted >= 0) & (predicted <= 1)).all():
        raise ValueError("probabilities hold a value outside 0 .. 1; pass sigmoid(logits)")
    if not ((observed == 0) | (observed == 1)).all():
        raise ValueError("labels hold a value other than 0 and 1; drop queries without a label")
    bins = (predicted * num_bins).long().clamp(max=num_bins - 1)
    gaps = predicted.new_zeros(num_bins).index_add(0, bins, predicted - observed)
    return (gaps.abs().sum() / len(labels)).float()
