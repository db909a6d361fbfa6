import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from tests.reference.think_curve import average_orders
from tracelib.metrics.think_curve import (
    THINK_RATES,
    compute_gains,
    mix_queries_per_second,
    trace_think_curve,
    weight_columns_equally,
)


def draw(seed, size=500):
    """Hits without and with thought, and the column of each query."""
    generator = torch.Generator().manual_seed(seed)
    direct = (torch.rand(size, generator=generator) < 0.6).double()
    thought = (torch.rand(size, generator=generator) < 0.8).double()
    columns = torch.multinomial(torch.tensor([1.0, 2, 7]), size, True, generator=generator)
    return direct, thought, columns, generator


def test_ends_are_the_two_pure_runs():
    direct, thought, _, generator = draw(0)
    curve = trace_think_curve(direct, thought, torch.rand(500, generator=generator))
    assert len(curve.scores) == len(THINK_RATES) == 11
    assert (THINK_RATES[0], THINK_RATES[-1]) == (0, 1)
    assert curve.scores[0] == pytest.approx(direct.mean().item())
    assert curve.scores[-1] == pytest.approx(thought.mean().item())


def test_a_constant_priority_is_the_straight_line():
    direct, thought, _, _ = draw(1)
    curve = trace_think_curve(direct, thought, torch.full((500,), 0.7))
    start, end = direct.mean().item(), thought.mean().item()
    line = [start + rate * (end - start) for rate in THINK_RATES]
    assert curve.scores == pytest.approx(line)
    assert curve.area == pytest.approx((start + end) / 2)
    assert curve.area_fraction == pytest.approx(0, abs=1e-12)


def test_a_gate_is_a_line_with_one_bend():
    """Of 10 queries 4 think first; they win 1 each, the others lose half a hit each."""
    direct = torch.tensor([0.0] * 4 + [1.0] * 6)
    thought = torch.tensor([1.0] * 4 + [0.5] * 6)
    curve = trace_think_curve(direct, thought, direct == 0)
    rising, falling = (0.6, 0.7, 0.8, 0.9, 1.0), (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
    assert curve.scores == pytest.approx((*rising, *falling))
    assert curve.area == pytest.approx(0.4 * 0.8 + 0.6 * 0.85)
    assert curve.area_fraction == pytest.approx(1)  # it knew all there is to know


def test_the_reverse_of_the_oracle_is_as_bad_as_the_oracle_is_good():
    direct, thought, _, _ = draw(2)
    gains = compute_gains(direct, thought)
    assert trace_think_curve(direct, thought, gains).area_fraction == pytest.approx(1)
    assert trace_think_curve(direct, thought, -gains).area_fraction == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(8))
def test_curve_is_that_of_all_orders_one_by_one(seed):
    generator = torch.Generator().manual_seed(seed)
    size = 3 + seed % 4
    direct, thought, priority = torch.randint(0, 3, (3, size), generator=generator)
    weights = torch.randint(1, 4, (size,), generator=generator)
    lists = [found.tolist() for found in (direct, thought, weights)]
    points = average_orders(*lists, priority.tolist())
    curve = trace_think_curve(direct, thought, priority, weights)
    picked = [points[math.floor(Fraction(i, 10) * size + Fraction(1, 2))] for i in range(11)]
    assert curve.scores == pytest.approx([float(point) for point in picked])
    areas = [
        float(sum(a + b for a, b in pairwise(p)) / (2 * size))
        for p in (
            points,
            average_orders(*lists, [0] * size),
            average_orders(*lists, oracle(*lists)),
        )
    ]
    assert curve.area == pytest.approx(areas[0])
    if areas[2] > areas[1]:
        expected = (areas[0] - areas[1]) / (areas[2] - areas[1])
        assert curve.area_fraction == pytest.approx(expected)
    else:
        assert math.isnan(curve.area_fraction)


def oracle(direct, thought, weights):
    return [w * (t - d) for d, t, w in zip(direct, thought, weights, strict=True)]


def test_no_order_beats_the_oracle():
    direct, thought, columns, generator = draw(3, 60)
    weights = weight_columns_equally(columns)
    best = trace_think_curve(direct, thought, compute_gains(direct, thought, weights), weights)
    for _ in range(50):
        tried = trace_think_curve(direct, thought, torch.rand(60, generator=generator), weights)
        assert tried.area_fraction < best.area_fraction == pytest.approx(1)
        assert all(a <= b + 1e-12 for a, b in zip(tried.scores, best.scores, strict=True))


def test_order_of_the_queries_plays_no_part():
    direct, thought, columns, generator = draw(4)
    priority = torch.randint(0, 20, (500,), generator=generator)
    weights = weight_columns_equally(columns)
    order = torch.randperm(500, generator=generator)
    curve = trace_think_curve(direct, thought, priority, weights)
    again = trace_think_curve(direct[order], thought[order], priority[order], weights[order])
    assert again.scores == pytest.approx(curve.scores, abs=1e-12)
    assert again.area_fraction == pytest.approx(curve.area_fraction, abs=1e-12)
    # the negative control: another order of the priorities alone is another curve
    other = trace_think_curve(direct, thought, priority[order], weights)
    assert other.area_fraction != pytest.approx(curve.area_fraction, abs=1e-3)


def test_only_the_order_of_priorities_counts():
    direct, thought, _, generator = draw(5)
    logits = torch.randn(500, generator=generator).double()
    curve = trace_think_curve(direct, thought, logits)
    assert trace_think_curve(direct, thought, torch.sigmoid(logits)) == curve
    assert trace_think_curve(direct, thought, logits * 1000 - 7) == curve


def test_equal_columns_weigh_equally_whatever_their_size():
    direct, thought, columns, generator = draw(6)
    weights = weight_columns_equally(columns)
    assert weights.sum().item() == pytest.approx(1)
    curve = trace_think_curve(direct, thought, torch.rand(500, generator=generator), weights)
    for place, scores in ((0, direct), (-1, thought)):
        means = [scores[columns == column].mean() for column in range(3)]
        assert curve.scores[place] == pytest.approx(torch.stack(means).mean().item())
    assert curve.scores[0] != pytest.approx(direct.mean().item(), abs=1e-4)
    # only the shares matter, not their sum
    scaled = trace_think_curve(direct, thought, columns, 50 * weights)
    assert scaled.scores == pytest.approx(
        trace_think_curve(direct, thought, columns, weights).scores
    )


def test_where_all_gain_alike_there_is_no_fraction():
    curve = trace_think_curve(torch.zeros(4), torch.ones(4), torch.arange(4))
    assert math.isnan(curve.area_fraction)
    assert curve.area == 0.5


def test_speed_is_the_harmonic_mix():
    speeds = [mix_queries_per_second(rate, 0.01, 0.05) for rate in THINK_RATES]
    assert (speeds[0], speeds[-1]) == (pytest.approx(100), pytest.approx(20))
    assert speeds[5] == pytest.approx(1 / 0.03)
    assert speeds == sorted(speeds, reverse=True)


ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONES, ONES[:2], ONES), r"thought_scores has shape \(2,\) beside \(3,\)"),
        ((ONES, ONES, ONES[:2]), r"priority has shape \(2,\) and 0 NaN; expected \(3,\)"),
        ((ONES, ONES, torch.tensor([0, torch.nan, 1])), r"priority has shape \(3,\) and 1 NaN"),
        ((ONES, torch.tensor([0, torch.inf, 1]), ONES), "thought_scores holds inf; not finite"),
        ((ONES[:0], ONES[:0], ONES[:0]), "weights of 0 queries"),
        ((ONES, ONES, ONES, -ONES), r"have sum -3\.0; expected .* none below 0"),
        ((ONES, ONES, ONES, 0 * ONES), r"have sum 0\.0; expected"),
        ((ONES, ONES, ONES, torch.full((3,), torch.nan)), "have sum nan; expected"),
        ((ONES, ONES, ONES, torch.ones(2)), r"direct_scores has shape \(3,\) beside \(2,\)"),
        ((torch.ones(3, 2), torch.ones(3, 2), ONES), r"direct_scores has shape \(3, 2\)"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        trace_think_curve(*arguments)


@pytest.mark.parametrize("arguments", [(1.1, 1, 1), (0.5, 0, 1), (0.5, 1, -1), (math.nan, 1, 1)])
def test_bad_times_are_named(arguments):
    with pytest.raises(ValueError, match=f"think_rate is {arguments[0]}, direct_seconds"):
        mix_queries_per_second(*arguments)
