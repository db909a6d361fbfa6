import json
import math

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from tests.reference.calibration import fit_rising
from tracelib.metrics.calibration import (
    ABOVE_ALL,
    RouterCalibration,
    build_calibration,
    read_calibration,
)
from tracelib.metrics.calibration_map import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    fit_isotonic,
    fit_temperature,
    place_temperature_knots,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def draw_overconfident(generator, size, factor):
    """Logits that are `factor` times what the labels are drawn from."""
    logits = 2 * torch.randn(size, generator=generator)
    labels = (torch.rand(size, generator=generator) < torch.sigmoid(logits)).long()
    return factor * logits, labels


def compute_loss(logits, labels, temperature):
    scaled = logits.double() / temperature
    return torch.nn.functional.binary_cross_entropy_with_logits(scaled, labels.double()).item()


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_is_found_again(generator, factor):
    logits, labels = draw_overconfident(generator, 50_000, factor)
    assert fit_temperature(logits, labels) == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_no_other_temperature_explains_labels_better(generator, factor):
    logits, labels = draw_overconfident(generator, 200, factor)
    found = fit_temperature(logits, labels)
    best = compute_loss(logits, labels, found)
    assert all(compute_loss(logits, labels, found * f) > best for f in (0.5, 0.99, 1.01, 2))


def test_temperature_of_soft_labels_is_exact():
    logits = torch.linspace(-5, 5, 11, dtype=torch.float64)
    assert fit_temperature(logits, torch.sigmoid(logits / 3)) == pytest.approx(3, rel=1e-9)


def test_temperature_stays_in_its_range(generator):
    logits = torch.randn(100, generator=generator)
    told = (logits > 0).long()
    assert fit_temperature(logits, told) == MIN_TEMPERATURE
    assert fit_temperature(1e6 * logits, told) == MIN_TEMPERATURE
    assert fit_temperature(logits, 1 - told) == MAX_TEMPERATURE
    # the negative control: one query on the wrong side, and it lies within
    told[logits.argmax()] = 0
    assert MIN_TEMPERATURE < fit_temperature(logits, told) < MAX_TEMPERATURE


@pytest.mark.parametrize("seed", range(20))
def test_isotonic_is_the_exact_one(seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(0, 9, (12,), generator=generator) / 8
    labels = torch.randint(0, 3, (12,), generator=generator) / 2
    raw, calibrated = fit_isotonic(points, labels)
    found = dict(zip(raw, calibrated, strict=True))
    expected = fit_rising(points.tolist(), labels.tolist())
    fitted = build_calibration("isotonic", points, labels, None, None, "utility")
    worth = fitted.calibrate(torch.tensor(sorted(set(points.tolist()))))
    assert worth.tolist() == pytest.approx([float(level) for level in expected])
    assert set(found) <= {0.0, 1.0, *points.tolist()}


def test_isotonic_of_separable_labels_is_a_step():
    knots = fit_isotonic(
        torch.tensor([0.1, 0.4, 0.6], dtype=torch.float64), torch.tensor([0, 0, 1])
    )
    assert knots == ((0.0, 0.1, 0.4, 0.6, 1.0), (0.0, 0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize("temperature", [MIN_TEMPERATURE, 0.5, 1.0, 3.0, MAX_TEMPERATURE])
def test_knots_lie_close_enough(temperature):
    raw, calibrated = place_temperature_knots(temperature)
    fitted = make(raw=raw, calibrated=calibrated)
    logits = torch.linspace(-17, 17, 20_001, dtype=torch.float64)
    found = fitted.calibrate(torch.sigmoid(logits))
    exact = torch.sigmoid(logits / temperature)
    assert (found - exact).abs().max() < 3e-3
    assert ((found - exact) / exact)[exact > 1e-6].abs().max() < 1e-2
    assert len(raw) < 300


def make(**changes):
    fields = {
        "method": "isotonic",
        "raw": (0.0, 0.25, 0.5, 1.0),
        "calibrated": (0.1, 0.1, 0.6, 0.9),
        "quantiles": tuple(i / 1000 for i in range(1001)),
        "direct_seconds": 0.01,
        "thought_seconds": 0.05,
        "labels": "annotated",
    }
    return RouterCalibration(**{**fields, **changes})


def test_calibrate_is_linear_between_knots_and_exact_at_them():
    probability = torch.tensor([0.0, 0.2, 0.25, 0.375, 0.5, 0.75, 1.0, torch.nan])
    found = make().calibrate(probability).tolist()
    assert found[:7] == pytest.approx([0.1, 0.1, 0.1, 0.35, 0.6, 0.75, 0.9], abs=1e-15)
    assert [found[i] for i in (0, 2, 4, 6)] == [0.1, 0.1, 0.6, 0.9]
    assert math.isnan(found[7])


def test_calibrate_never_turns_queries_round(generator):
    near_one = 1 - torch.arange(2000) * 2.0**-24
    near_zero = torch.rand(2000, generator=generator) ** 20
    probability = torch.cat([near_zero, torch.rand(2000, generator=generator), near_one])
    probability = probability.sort().values
    for method in ("temperature", "isotonic"):
        labels = (torch.rand(6000, generator=generator) < probability).long()
        fitted = build_calibration(method, probability, labels, None, None, "annotated")
        found = fitted.calibrate(probability)
        assert bool((found.diff() >= 0).all())
        assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_calibration_lowers_the_calibration_error(generator, method):
    fit_on, check_on = (draw_overconfident(generator, 20_000, 4.0) for _ in range(2))
    fitted = build_calibration(method, torch.sigmoid(fit_on[0]), fit_on[1], None, None, "annotated")
    raw = torch.sigmoid(check_on[0])
    before = binary_calibration_error(raw, check_on[1]).item()
    after = binary_calibration_error(fitted.calibrate(raw).float(), check_on[1]).item()
    assert before > 0.08
    assert after < 0.015


def test_rounded_probabilities_are_what_is_fitted():
    """Logits beyond 17 are 1 in float32: a logit of infinity would have no temperature."""
    probabilities = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    labels = torch.tensor([1, 1, 0, 0, 0])
    fitted = build_calibration("temperature", probabilities, labels, None, None, "annotated")
    worth = fitted.calibrate(probabilities)
    assert 0.5 < worth[0] < 1 - 1e-3
    assert worth[3].item() == pytest.approx(1 - worth[0].item())


def test_find_raw_turns_calibrate_round():
    fitted = make()
    assert fitted.find_raw(0.6) == 0.5
    assert fitted.find_raw(0.35) == pytest.approx(0.375)
    assert fitted.find_raw(0.05) == fitted.find_raw(0.1) == 0.0
    assert fitted.find_raw(0.9) == 1.0
    assert fitted.find_raw(0.91) == ABOVE_ALL
    flat = make(raw=(0.0, 0.2, 0.4, 1.0), calibrated=(0.0, 0.5, 0.5, 1.0))
    assert flat.find_raw(0.5) == 0.2


@pytest.mark.parametrize("size", [1, 7, 300, 1000, 2048, 3001])
@pytest.mark.parametrize("kind", ["even", "saturated"])
def test_a_budget_is_kept(generator, size, kind):
    probabilities = torch.rand(size, generator=generator)
    if kind == "saturated":  # neighbours in float32, as near to 1 as it goes
        probabilities = 1 - torch.randperm(size, generator=generator) * 2.0**-24
    fitted = build_calibration(
        "temperature", probabilities, torch.ones(size), None, None, "annotated"
    )
    for budget in (0, 0.001, 0.1, 0.25, 0.3, 0.5, 0.777, 0.999, 1):
        threshold = fitted.find_threshold(budget)
        share = (probabilities >= threshold).double().mean().item()
        assert abs(share - budget) <= 0.001 + 0.5 / size + 1e-9
    assert fitted.find_threshold(0) == ABOVE_ALL
    assert fitted.find_threshold(1) == 0.0


def test_queries_of_one_probability_think_all_or_not_at_all():
    probabilities = torch.tensor([0.1] * 40 + [0.5] * 40 + [0.9] * 20)
    labels = torch.zeros(100)
    fitted = build_calibration("isotonic", probabilities, labels, None, None, "annotated")
    expected = {0.0: 0, 0.05: 0, 0.1: 0, 0.11: 20, 0.39: 20, 0.4: 20, 0.41: 60, 0.79: 60, 0.81: 100}
    for budget, num_thinking in expected.items():
        assert (probabilities >= fitted.find_threshold(budget)).sum() == num_thinking


def test_queries_without_a_label_count_for_the_budget_only(generator):
    probabilities, labels = torch.rand(200, generator=generator), torch.ones(200)
    labels[::2] = 0
    kept = build_calibration("isotonic", probabilities[:100], labels[:100], None, None, "utility")
    labels[100:] = -1
    whole = build_calibration("isotonic", probabilities, labels, None, None, "utility")
    assert (whole.raw, whole.calibrated) == (kept.raw, kept.calibrated)
    assert whole.quantiles != kept.quantiles
    share = (probabilities >= whole.find_threshold(0.3)).double().mean().item()
    assert share == pytest.approx(0.3, abs=0.0051)


def test_a_speed_gives_its_share():
    fitted = make()
    assert fitted.find_budget(100.0) == pytest.approx(0, abs=1e-12)
    assert fitted.find_budget(20.0) == pytest.approx(1)
    for budget in (0.1, 0.5, 0.9):
        speed = 1 / ((1 - budget) * 0.01 + budget * 0.05)
        assert fitted.find_budget(speed) == pytest.approx(budget)


@pytest.mark.parametrize(
    ("changes", "speed", "message"),
    [
        ({}, 100.1, r"is 100\.1, reachable is 20 \(all queries think\) \.\. 100 \(none does\)"),
        ({}, 19.9, r"is 19\.9, reachable is 20 "),
        ({}, math.nan, "is nan, reachable"),
        ({"direct_seconds": None}, 50, "direct_seconds is None .* no speed was measured"),
        ({"thought_seconds": 0.01}, 50, r"thought_seconds 0\.01 is not above direct_seconds 0\.01"),
    ],
)
def test_a_speed_out_of_reach_is_refused(changes, speed, message):
    with pytest.raises(ValueError, match=message):
        make(**changes).find_budget(speed)


@pytest.mark.parametrize("budget", [-0.1, 1.1, math.nan])
def test_a_budget_out_of_range_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget is {budget}, allowed 0 .. 1"):
        make().find_threshold(budget)


@pytest.mark.parametrize("probability", [-0.01, 1.01])
def test_a_probability_out_of_range_is_refused(probability):
    with pytest.raises(ValueError, match=r"a probability is .*, allowed 0 \.\. 1"):
        make().calibrate(torch.tensor([0.5, probability]).double())


def test_json_brings_it_back(tmp_path, generator):
    probabilities = torch.rand(50, generator=generator)
    fitted = build_calibration(
        "temperature", probabilities, torch.rand(50, generator=generator), 0.1, None, "utility"
    )
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**fitted.to_json(), "split": "val"}))
    assert read_calibration(path) == fitted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "platt"}, "method is 'platt', allowed temperature, isotonic"),
        ({"labels": ["annotated"]}, r"labels is \['annotated'\], allowed annotated, utility"),
        ({"raw": [0, 0.5, 0.5, 1]}, r"raw 2 is 0\.5 after 0\.5; it must rise"),
        ({"raw": [0, 0.5, 0.6, 0.9]}, r"raw has 4 knots from 0 to 0\.9; expected 4 from 0 to 1"),
        ({"raw": [0, 0.5, 1]}, "raw has 3 knots from 0 to 1; expected 4"),
        ({"raw": []}, "raw has 0 values"),
        ({"calibrated": [0.1, 0.3, 0.2, 0.9]}, r"calibrated 2 is 0\.2 after 0\.3"),
        ({"calibrated": [0.1, 0.3, 0.5, 1.5]}, r"calibrated 3 is 1\.5, allowed 0 \.\. 1"),
        ({"calibrated": [0.1, 0.3, None, 1]}, "calibrated 2 is None"),
        ({"calibrated": [0.1, 0.3, math.nan, 1]}, "calibrated 2 is nan"),
        ({"calibrated": "0.1"}, "calibrated is '0.1', not a list"),
        ({"quantiles": [0.5] * 1000}, "quantiles has 1000 values, not 1001"),
        ({"direct_seconds": 0}, "direct_seconds is 0, must be above 0, or null"),
        ({"thought_seconds": "fast"}, "thought_seconds is 'fast'"),
        ({"thought_seconds": True}, "thought_seconds is True"),
    ],
)
def test_a_broken_file_is_named(tmp_path, changes, message):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**make().to_json(), **changes}))
    with pytest.raises(ValueError, match=rf"calibration\.json is nothing .*: {message}"):
        read_calibration(path)


@pytest.mark.parametrize("text", ["", "[]", '"raw"', '{"raw": [0, 1]}', "\x00"])
def test_what_is_no_calibration_is_named(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"calibration\.json is nothing that `calibrate` wrote"):
        read_calibration(path)
    path.unlink()
    with pytest.raises(ValueError, match="No such file"):
        read_calibration(path)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([0.1, math.nan], [0, 1], "probability 1 is nan, allowed 0 .. 1"),
        ([0.1, 1.5], [0, -1], r"probability 1 is 1\.5"),
        ([0.1, 0.5], [0, 2], "label 1 is 2"),
        ([0.1, 0.5], [-1, -1], "none of 2 queries has a label"),
        ([0.1, 0.5], [0], r"shapes \(2,\) and \(1,\)"),
        ([], [], r"shapes \(0,\) and \(0,\)"),
    ],
)
@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_what_cannot_be_fitted_is_named(method, probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        build_calibration(
            method, torch.tensor(probabilities), torch.tensor(labels), None, None, "annotated"
        )


def test_a_logit_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="logit 1 is inf"):
        fit_temperature(torch.tensor([0.0, math.inf]), torch.tensor([0, 1]))
