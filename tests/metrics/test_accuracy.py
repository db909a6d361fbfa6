"""Accuracy among own candidates: closed forms, ties, and numbers that a slow loop repeats."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tracelib.metrics.accuracy import GoldAccuracy, compare_gold


def measure(scores, offsets):
    metric = GoldAccuracy()
    metric.update(compare_gold(torch.tensor(scores), torch.tensor(offsets)))
    return {name: value.item() for name, value in metric.compute().items()}


def test_worked_example():
    """Row A .9, .9, .1 is a tie, row B .2, .7 a miss."""
    found = measure([0.9, 0.9, 0.1, 0.2, 0.7], [0, 3, 5])
    assert found == {"accuracy": 0.5, "accuracy_strict": 0.0}


@pytest.mark.parametrize(
    ("scores", "above", "tied", "best"),
    [
        ([0.5], 0, 0, 0),
        ([0.5, 0.4, 0.4], 0, 0, 0),
        ([0.5, 0.5, 0.4], 0, 1, 0),
        ([0.4, 0.5, 0.5], 2, 0, 1),
        ([0.4, 0.3, 0.5], 1, 0, 2),
        ([-0.4, -0.5, -0.4], 0, 1, 0),  # scores below 0 count like any other
    ],
)
def test_one_query(scores, above, tied, best):
    found = compare_gold(torch.tensor(scores), torch.tensor([0, len(scores)]))
    assert (found.num_above.item(), found.num_tied.item(), found.best.item()) == (above, tied, best)


def test_best_is_numpys_first_maximum_and_counts_are_a_loops():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, size=200)
    offsets = np.concatenate([[0], lengths.cumsum()])
    scores = generator.integers(0, 5, size=offsets[-1]) / 4  # many ties
    found = compare_gold(torch.tensor(scores), torch.tensor(offsets))
    rows = [scores[a:b] for a, b in pairwise(offsets)]
    assert found.best.tolist() == [int(np.argmax(row)) for row in rows]
    assert found.num_above.tolist() == [int((row > row[0]).sum()) for row in rows]
    assert found.is_correct.tolist() == [bool(np.argmax(row) == 0) for row in rows]
    assert found.is_correct_strict.tolist() == [bool((row[1:] < row[0]).all()) for row in rows]
    assert 0 < found.is_correct_strict.sum() < found.is_correct.sum() < 200


def test_metric_adds_up_over_updates():
    metric = GoldAccuracy()
    metric.update(compare_gold(torch.tensor([0.9, 0.1]), torch.tensor([0, 2])))
    metric.update(compare_gold(torch.tensor([0.9, 0.9, 0.1, 0.2]), torch.tensor([0, 2, 4])))
    values = metric.compute()
    assert values["accuracy"].item() == pytest.approx(2 / 3)
    assert values["accuracy_strict"].item() == pytest.approx(1 / 3)
    assert (int(metric.num_correct), int(metric.num_queries)) == (2, 3)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metric_without_queries_is_refused():
    with pytest.raises(ValueError, match="accuracy of 0 queries"):
        GoldAccuracy().compute()


@pytest.mark.parametrize(
    ("scores", "offsets", "message"),
    [
        ([0.1, 0.2], [0, 1], "from 0 to 2"),
        ([0.1, 0.2], [1, 2], "from 0 to 2"),
        ([0.1, 0.2], [0, 0, 2], r"query \[0\] has no candidates"),
        ([0.1, 0.2, 0.3], [0, 2, 1, 3], r"query \[1\] has no candidates"),
        ([], [0], "has no candidates"),
        ([0.1, float("nan")], [0, 2], "score 1 is nan"),
    ],
)
def test_bad_scores_are_refused(scores, offsets, message):
    with pytest.raises(ValueError, match=message):
        compare_gold(torch.tensor(scores), torch.tensor(offsets))
