import math

import pytest
import torch

from tracelib.metrics.utility import (
    Standing,
    Utility,
    UtilityRule,
    compute_utility,
    summarize_labels,
)


def make_utility(direct_rank, thought_ranks, margin=0.0, tokens=10.0):
    """Return the utility of one query of S thoughts, whose margin all change alike."""
    thoughts = torch.tensor(thought_ranks)[:, None]
    return compute_utility(
        Standing(torch.tensor([direct_rank]), torch.tensor([0.25]).double()),
        Standing(thoughts, torch.full(thoughts.shape, 0.25 + margin).double()),
        torch.full(thoughts.shape, tokens),
    )


@pytest.mark.parametrize(
    ("direct", "thought", "expected"), [(3, 1, 1.0), (1, 3, -1.0), (7, 1, 2.0), (5, 5, 0.0)]
)
def test_rank_utility_is_the_fall_of_the_ranks_logarithm(direct, thought, expected):
    assert make_utility(direct, [thought]).rank_utility.tolist() == [expected]


def test_rank_utility_of_odd_ranks_agrees_with_plain_python():
    expected = math.log2(11) - math.log2(4)
    assert make_utility(10, [3]).rank_utility.item() == pytest.approx(expected, abs=1e-12)


def test_margin_utility_is_the_margins_growth():
    assert make_utility(1, [1], margin=0.125).margin_utility.tolist() == [0.125]
    assert make_utility(1, [1], margin=-0.5).margin_utility.tolist() == [-0.5]


def test_samples_are_averaged():
    utility = compute_utility(
        Standing(torch.tensor([3]), torch.tensor([0.0])),
        Standing(torch.tensor([[1], [3], [7]]), torch.tensor([[0.5], [0.25], [0.0]])),
        torch.tensor([[4], [6], [11]]),
    )
    assert utility.rank_utility.tolist() == [0.0]  # +1, 0, -1
    assert utility.margin_utility.tolist() == [0.25]
    assert utility.num_tokens.tolist() == [7.0]
    assert make_utility(3, [1, 1, 3, 7]).rank_utility.tolist() == [0.25]
    assert make_utility(1, [1, 1]).is_settled.tolist() == [True]
    assert make_utility(1, [1, 2]).is_settled.tolist() == [False]
    assert make_utility(2, [1, 1]).is_settled.tolist() == [False]


@pytest.mark.parametrize(
    ("direct", "thought", "margin", "expected"),
    [
        (2, 1, -0.9, 1),  # a better rank counts, whatever the margin does
        (1, 2, 0.9, 0),
        (2, 2, 0.125, 1),  # equal ranks: the margin breaks the tie
        (2, 2, 0.0625, 0),  # not by more than epsilon, and the rank is not 1: direct is cheaper
        (2, 2, -0.9, 0),
        (1, 1, 0.125, 1),
        (1, 1, 0.0625, -1),  # first either way by the same margin
        (1, 1, -0.0625, -1),
        (1, 1, -0.125, 0),
        (0, 0, 0.0, -1),  # no positive in the pool
    ],
)
def test_label_of_every_case(direct, thought, margin, expected):
    utility = make_utility(direct, [thought], margin)
    assert UtilityRule(margin_epsilon=0.0625).label(utility).tolist() == [expected]


def test_a_cost_makes_a_small_gain_a_loss_and_a_tie_a_bypass():
    gain = make_utility(3, [1], tokens=10.0)
    assert UtilityRule(0.05).compute_net_utility(gain).item() == pytest.approx(0.5)
    assert UtilityRule(0.05).label(gain).item() == 1
    assert UtilityRule(0.2).label(gain).item() == 0
    settled, helped = make_utility(1, [1]), make_utility(2, [2], margin=0.5)
    assert UtilityRule().label(settled).item() == -1
    assert UtilityRule().label(helped).item() == 1
    assert UtilityRule(1e-6).label(settled).item() == 0
    assert UtilityRule(1e-6).label(helped).item() == 0


def test_soft_target_is_a_sigmoid_of_the_net_utility():
    gain = make_utility(3, [1], tokens=10.0)
    assert UtilityRule().compute_soft_target(gain).item() == pytest.approx(1 / (1 + math.exp(-1)))
    expected = 1 / (1 + math.exp(-0.5 / 2))
    rule = UtilityRule(cost_weight=0.05, temperature=2.0)
    assert rule.compute_soft_target(gain).item() == pytest.approx(expected)
    assert UtilityRule().compute_soft_target(make_utility(4, [4])).item() == 0.5
    assert UtilityRule().compute_soft_target(make_utility(0, [0])).item() == -1
    assert UtilityRule().compute_soft_target(make_utility(1, [3])).item() < 0.5  # harm is below


def test_a_query_without_a_positive_has_no_utility():
    utility = make_utility(0, [0])
    assert utility.rank_utility.isnan().all()
    assert UtilityRule(cost_weight=1.0).label(utility).tolist() == [-1]


def test_summary_counts_labels_by_annotated_difficulty():
    direct = torch.tensor([3, 3, 1, 1, 1, 0])
    thought = torch.tensor([[1, 7, 1, 3, 1, 0]])
    zeros = torch.zeros(6)
    utility = compute_utility(
        Standing(direct, zeros), Standing(thought, zeros[None]), torch.ones(1, 6)
    )
    labels = UtilityRule().label(utility)
    assert labels.tolist() == [1, 0, -1, 0, -1, -1]
    difficulty = torch.tensor([1, 1, 1, 0, -1, 0], dtype=torch.int8)
    summary = summarize_labels(labels, difficulty, utility)
    assert summary["annotated"] == {
        "hard": {"think": 1, "direct": 1, "either": 1, "mean_rank_utility": 0.0},
        "easy": {"think": 0, "direct": 1, "either": 1, "mean_rank_utility": -1.0},
        "unknown": {"think": 0, "direct": 0, "either": 1, "mean_rank_utility": 0.0},
    }
    assert summary["agreement"] == pytest.approx(2 / 3)
    assert (summary["num_queries"], summary["num_unranked"]) == (6, 1)
    shares = [summary[f"{name}_share"] for name in ("think", "direct", "either")]
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    nobody = summarize_labels(labels[4:], difficulty[4:], utility_of(utility, slice(4, 6)))
    assert nobody["agreement"] is None
    assert nobody["annotated"]["hard"]["mean_rank_utility"] is None


def utility_of(utility, rows):
    return Utility(*(values[rows] for values in vars(utility).values()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UtilityRule(cost_weight=-0.1), r"cost_weight is -0\.1, must be at least 0"),
        (lambda: UtilityRule(margin_epsilon=math.nan), "margin_epsilon is nan"),
        (lambda: UtilityRule(temperature=0), "temperature is 0, must be above 0"),
        (lambda: make_utility(1, [0]), "with a thought or without"),
        (lambda: make_utility(1, []), "with S >= 1"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_that_do_not_fit_are_named():
    one, two = torch.tensor([1]), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"\(2,\), .*tokens \(1, 1\)"):
        compute_utility(Standing(two, two), Standing(one[None], one[None]), one[None])
