import itertools
import math

import numpy as np
import pytest
import torch

from tracelib.metrics.significance import bootstrap_interval, sign_flip_p_value


def draw_hits(generator, size, rate_a, rate_b):
    """Paired differences of two runs whose hits are independent coins."""
    hits = torch.rand(2, size, generator=generator) < torch.tensor([[rate_a], [rate_b]])
    return hits[1].double() - hits[0].double()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_interval_of_a_constant_has_no_width():
    assert bootstrap_interval([torch.full((7,), 0.25)], 100, 0) == (0.25, 0.25)


def test_interval_is_that_of_the_normal_law(generator):
    differences = draw_hits(generator, 4000, 0.4, 0.5)
    low, high = bootstrap_interval([differences], 20_000, 0)
    error = 1.959964 * differences.std(correction=0).item() / math.sqrt(4000)
    assert low == pytest.approx(differences.mean().item() - error, abs=0.03 * error)
    assert high == pytest.approx(differences.mean().item() + error, abs=0.03 * error)


@pytest.mark.parametrize("kind", ["hits", "continuous"])
def test_interval_is_that_of_drawing_queries_one_by_one(generator, kind):
    differences = draw_hits(generator, 240, 0.4, 0.6)
    if kind == "continuous":
        differences = torch.randn(240, generator=generator, dtype=torch.float64)
    drawn = np.random.default_rng(1).integers(240, size=(20_000, 240))
    expected = np.quantile(differences.numpy()[drawn].mean(1), [0.025, 0.975])
    found = bootstrap_interval([differences], 20_000, 0)
    # Means of 240 hits are multiples of a 240th: the two may be a step or two apart.
    assert found == pytest.approx(expected, abs=0.01)
    assert found[1] - found[0] > 0.1


def test_interval_holds_the_truth_as_often_as_it_says(generator):
    trials, truth = 400, 0.1
    found = [
        bootstrap_interval([draw_hits(generator, 150, 0.5, 0.6)], 500, trial)
        for trial in range(trials)
    ]
    coverage = sum(low <= truth <= high for low, high in found) / trials
    assert 0.92 <= coverage <= 0.98
    # the negative control: an interval of half the confidence misses half the time
    narrow = [
        bootstrap_interval([draw_hits(generator, 150, 0.5, 0.6)], 500, trial, level=0.5)
        for trial in range(trials)
    ]
    assert 0.4 <= sum(low <= truth <= high for low, high in narrow) / trials <= 0.6


def test_strata_weigh_the_same_however_large(generator):
    small, large = torch.ones(10), torch.zeros(1000)
    assert bootstrap_interval([small, large], 50, 0) == (0.5, 0.5)
    strata = [draw_hits(generator, size, 0.4, 0.5) for size in (400, 2000)]
    low, high = bootstrap_interval(strata, 20_000, 0)
    variance = sum(s.var(correction=0).item() / len(s) for s in strata) / 4
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.03)
    # the negative control: all queries in one heap
    assert (high + low) / 2 != pytest.approx(torch.cat(strata).mean().item(), abs=0.002)


def test_equal_strata_are_resampled_apart():
    column = torch.tensor([1.0, -1.0] * 200)
    one, four = (bootstrap_interval([column] * n, 20_000, 0) for n in (1, 4))
    # The mean of four independent columns is half as wide; drawn alike it would be as wide.
    assert (one[1] - one[0]) / (four[1] - four[0]) == pytest.approx(2, rel=0.05)


def test_p_value_in_closed_form():
    ones = torch.ones(5)
    assert sign_flip_p_value([ones], 10, 0) == 2 / 2**5
    assert sign_flip_p_value([torch.tensor([1.0, -1.0])], 10, 0) == 1
    assert sign_flip_p_value([torch.zeros(9)], 10, 0) == 1
    # Hits: the exact binomial test of the queries that only one run gets right (McNemar).
    wins, losses = 11, 3
    differences = torch.tensor([1.0] * wins + [-1.0] * losses + [0.0] * 80)
    expected = 2 * sum(math.comb(14, i) for i in range(losses + 1)) / 2**14
    assert sign_flip_p_value([differences], 10, 0) == pytest.approx(expected)


def test_p_value_by_draws_agrees_with_the_exact_one():
    wins, losses = 40, 25
    differences = torch.tensor([1.0] * wins + [-1.0] * losses + [0.0] * 30)
    expected = 2 * sum(math.comb(65, i) for i in range(losses + 1)) / 2**65
    assert sign_flip_p_value([differences], 100_000, 0) == pytest.approx(expected, abs=0.005)


def test_p_value_by_draws_of_terms_that_all_differ(generator):
    terms = torch.randn(18, generator=generator).double() + 0.4
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=18)))
    expected = (np.abs(signs @ terms.numpy()) >= terms.sum().abs().item()).mean()
    assert 0.01 < expected < 0.5
    assert sign_flip_p_value([terms], 50_000, 0) == pytest.approx(expected, abs=0.01)


def test_exact_p_value_tries_all_signs_of_all_strata(generator):
    strata = [torch.randn(size, generator=generator).double() for size in (3, 5)]
    observed = abs(sum(s.mean().item() for s in strata))
    means = []
    for signs in itertools.product((-1, 1), repeat=8):
        flipped = torch.tensor(signs).double().split([3, 5])
        pairs = zip(strata, flipped, strict=True)
        means.append(abs(sum((s * f).mean().item() for s, f in pairs)))
    expected = sum(mean >= observed - 1e-12 for mean in means) / 2**8
    assert sign_flip_p_value(strata, 10, 0) == pytest.approx(expected)


def test_smallest_p_value_is_one_in_the_draws():
    assert sign_flip_p_value([torch.ones(500)], 99, 0) == 0.01


def test_p_values_of_equal_runs_are_uniform(generator):
    values = torch.tensor(
        [
            sign_flip_p_value([torch.randn(60, generator=generator)], 400, trial)
            for trial in range(500)
        ]
    )
    for level in (0.05, 0.25, 0.5, 0.75):
        spread = 4 * math.sqrt(level * (1 - level) / len(values))
        assert (values <= level).double().mean().item() == pytest.approx(level, abs=spread)


def test_p_value_sees_a_true_difference(generator):
    alike, better = (draw_hits(generator, 2000, 0.4, rate) for rate in (0.4, 0.5))
    assert sign_flip_p_value([better], 1000, 0) < 0.002
    assert sign_flip_p_value([alike], 1000, 0) > 0.01
    # Flipped, it is the same evidence for the other run.
    assert sign_flip_p_value([-better], 1000, 0) == sign_flip_p_value([better], 1000, 0)


def test_equal_seeds_give_equal_numbers(generator):
    strata = [torch.randn(50, generator=generator)]
    assert bootstrap_interval(strata, 500, 1) == bootstrap_interval(strata, 500, 1)
    assert bootstrap_interval(strata, 500, 1) != bootstrap_interval(strata, 500, 2)
    assert sign_flip_p_value(strata, 500, 1) == sign_flip_p_value(strata, 500, 1)


@pytest.mark.parametrize("test", [bootstrap_interval, sign_flip_p_value])
@pytest.mark.parametrize(
    ("strata", "num_resamples", "message"),
    [
        ([], 10, "strata of shapes"),
        ([torch.ones(3), torch.ones(0)], 10, r"shapes \[\(3,\), \(0,\)\]"),
        ([torch.ones(2, 2)], 10, r"\(2, 2\)"),
        ([torch.tensor([1.0, math.nan])], 10, "not finite"),
        ([torch.ones(3)], 0, "num_resamples is 0"),
    ],
)
def test_misuse_is_named(test, strata, num_resamples, message):
    with pytest.raises(ValueError, match=message):
        test(strata, num_resamples, 0)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_level_is_checked(level):
    with pytest.raises(ValueError, match="level is"):
        bootstrap_interval([torch.ones(3)], 10, 0, level)
