import pytest
import torch

from tests.reference.calibration import calibration_error
from tracelib.metrics.calibration import expected_calibration_error


def test_calibrated_and_overconfident():
    labels = torch.tensor([1, 0, 0, 0])
    assert expected_calibration_error(torch.full((4,), 0.25), labels).item() == 0
    assert expected_calibration_error(torch.ones(4), labels).item() == 0.75


def test_bins_do_not_cancel():
    probabilities, labels = torch.tensor([0.2, 0.8]), torch.tensor([1, 0])
    assert expected_calibration_error(probabilities, labels, 2).item() == pytest.approx(0.8)
    assert expected_calibration_error(probabilities, labels, 1).item() == pytest.approx(0, abs=1e-6)


def test_bins_are_weighted_by_their_queries():
    probabilities, labels = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 0])
    assert expected_calibration_error(probabilities, labels).item() == 0.25


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_agrees_with_the_definition(num_bins):
    probabilities = torch.rand(400, dtype=torch.float64)
    labels = (torch.rand(400) < probabilities**2).long()
    expected = calibration_error(probabilities.tolist(), labels.tolist(), num_bins)
    found = expected_calibration_error(probabilities, labels, num_bins)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    assert calibration_error(probabilities.tolist(), labels.tolist(), 100) != pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("probabilities", "labels", "num_bins", "message"),
    [
        ([0.5], [1], 0, "num_bins is 0"),
        ([], [], 15, "N >= 1"),
        ([0.5], [1, 0], 15, r"\(1,\) and labels \(2,\)"),
        ([1.5], [1], 15, "outside 0 .. 1"),
        ([float("nan")], [1], 15, "outside 0 .. 1"),
        ([0.5], [-1], 15, "other than 0 and 1"),
    ],
)
def test_misuse_is_named(probabilities, labels, num_bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(torch.tensor(probabilities), torch.tensor(labels), num_bins)
