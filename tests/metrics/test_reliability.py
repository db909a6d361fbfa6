import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from tracelib.metrics.reliability import bin_probabilities


def test_bins_in_closed_form():
    found = bin_probabilities(
        torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0]), torch.tensor([0, 1, 1, 1, 0]), num_bins=2
    )
    assert found.counts.tolist() == [2, 3]  # 0.5 belongs to the upper bin
    assert found.probability.tolist() == pytest.approx([0.1, 0.8])
    assert found.frequency.tolist() == pytest.approx([0.5, 2 / 3])
    assert found.calibration_error == pytest.approx((2 * 0.4 + 3 * (0.8 - 2 / 3)) / 5)


def test_calibration_error_is_that_of_torchmetrics():
    probability = torch.rand(500, dtype=torch.float64)
    labels = (torch.rand(500) < probability**2).long()
    expected = binary_calibration_error(probability, labels).item()
    assert bin_probabilities(probability, labels).calibration_error == pytest.approx(expected)
    assert expected > 0.05


def test_bins_without_queries_are_left_out():
    found = bin_probabilities(torch.tensor([0.99, 1.0]), torch.tensor([1, 1]))
    assert found.counts.tolist() == [2]


@pytest.mark.parametrize(
    ("probability", "labels", "message"),
    [
        ([0.5, 0.5], [1], r"shapes \(2,\) and \(1,\)"),
        ([], [], "N >= 1"),
        ([1.5], [1], r"probability has 1\.5"),
        ([float("nan")], [1], "probability has nan"),
        ([0.5], [-1], "labels has -1"),
    ],
)
def test_bad_values_are_refused(probability, labels, message):
    with pytest.raises(ValueError, match=message):
        bin_probabilities(torch.tensor(probability), torch.tensor(labels))
