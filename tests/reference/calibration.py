"""Expected calibration error by the definition, bin by bin."""

from __future__ import annotations

from collections.abc import Sequence


def calibration_error(
    probabilities: Sequence[float], labels: Sequence[int], num_bins: int
) -> float:
    total = 0.0
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        last = b == num_bins - 1
        inside = [
            (p, y)
            for p, y in zip(probabilities, labels, strict=True)
            if low <= p < high or (last and p == 1)
        ]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            frequency = sum(y for _, y in inside) / len(inside)
            total += len(inside) / len(labels) * abs(confidence - frequency)
    return total
