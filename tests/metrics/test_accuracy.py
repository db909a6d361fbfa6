"""Accuracy against own candidates: closed forms, ties, and numbers that a slow loop repeats."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tracelib.metrics.accuracy import GoldAccuracy, compare_gold, score_own_candidates


def make_embeddings(cosines):
    """Return `[N, 2]` rows of various lengths whose cosines with (1, 0) are `cosines`."""
    angles = torch.tensor(cosines, dtype=torch.float64).acos()
    lengths = torch.arange(1, len(cosines) + 1)[:, None]
    return torch.stack([angles.cos(), angles.sin()], 1) * lengths


def measure(scores, offsets):
    metric = GoldAccuracy()
    metric.update(compare_gold(torch.tensor(scores), torch.tensor(offsets)))
    return {name: value.item() for name, value in metric.compute().items()}


def test_worked_example():
    """Row A .9, .9, .1 is a tie, row B .2, .7 a miss."""
    rows = make_embeddings([0.9, 0.1, 0.2, 0.7])
    places, offsets = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 3, 5])
    queries = torch.tensor([[5.0, 0.0], [0.1, 0.0]], dtype=torch.float64)
    scores = score_own_candidates(queries, rows, places, offsets)
    assert scores.tolist() == pytest.approx([0.9, 0.9, 0.1, 0.2, 0.7], abs=2**-24)
    assert measure(scores.tolist(), offsets.tolist()) == {"accuracy": 0.5, "accuracy_strict": 0.0}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scores_are_cosines(dtype):
    queries, candidates = torch.randn(3, 40, dtype=dtype), 7 * torch.randn(9, 40, dtype=dtype)
    places, offsets = torch.tensor([8, 0, 3, 3, 1, 5]), torch.tensor([0, 1, 4, 6])
    scores = score_own_candidates(queries, candidates, places, offsets)
    owner = torch.tensor([0, 1, 1, 1, 2, 2])
    expected = torch.cosine_similarity(queries[owner].double(), candidates[places].double())
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 1e-7 * 2


def test_equal_embeddings_tie_wherever_they_stand():
    """The control nudges one of them."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 769, generator=generator)
    row = torch.randn(769, generator=generator)
    candidates = torch.randn(600, 769, generator=generator)
    twins = [0, 1, 17, 255, 256, 599]
    candidates[twins] = row
    scores = score_own_candidates(query, candidates, torch.arange(600), torch.tensor([0, 600]))
    assert len(scores[twins].unique()) == 1
    alone = score_own_candidates(query, row[None], torch.tensor([0]), torch.tensor([0, 1]))
    assert alone[0] == scores[0]
    assert compare_gold(scores, torch.tensor([0, 600])).num_tied.item() == len(twins) - 1
    nudged = candidates.clone()
    nudged[17, 0] += 1e-3
    scores = score_own_candidates(query, nudged, torch.arange(600), torch.tensor([0, 600]))
    assert len(scores[twins].unique()) == 2


def test_equal_embeddings_tie_across_blocks():
    candidates = torch.randn(9000, 33)
    candidates[[5, 4095, 4096, 8999]] = candidates[0].clone()
    places = torch.tensor([0, 5, 4095, 4096, 8999, 1])
    scores = score_own_candidates(torch.randn(1, 33), candidates, places, torch.tensor([0, 6]))
    assert len(scores[:5].unique()) == 1
    assert scores[5] != scores[0]
    candidates[7000] = 0
    with pytest.raises(ValueError, match="candidate row 7000 has norm 0"):
        score_own_candidates(torch.randn(1, 33), candidates, places, torch.tensor([0, 6]))


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


@pytest.mark.parametrize(
    ("queries", "candidates", "places", "message"),
    [
        (torch.ones(1, 2), torch.ones(1, 3), [0], "one D"),
        (torch.ones(1, 2), torch.ones(1, 2), [1], "from 1 to 1; allowed are 0 .. 0"),
        (torch.ones(1, 2), torch.ones(1, 2), [-1], "from -1 to -1"),
        (torch.zeros(1, 2), torch.ones(1, 2), [0], "query row 0 has norm 0"),
        (torch.ones(1, 2), torch.full((1, 2), torch.inf), [0], "candidate row 0 has norm inf"),
    ],
)
def test_bad_embeddings_are_refused(queries, candidates, places, message):
    with pytest.raises(ValueError, match=message):
        score_own_candidates(queries, candidates, torch.tensor(places), torch.tensor([0, 1]))
