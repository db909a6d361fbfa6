"""Cosines with own candidates: closed forms, and ties to the last bit."""

import pytest
import torch

from tracelib.metrics.accuracy import compare_gold
from tracelib.retrieval.own_candidates import score_own_candidates


def make_embeddings(cosines):
    """Return `[N, 2]` rows of various lengths whose cosines with (1, 0) are `cosines`."""
    angles = torch.tensor(cosines, dtype=torch.float64).acos()
    lengths = torch.arange(1, len(cosines) + 1)[:, None]
    return torch.stack([angles.cos(), angles.sin()], 1) * lengths


def test_worked_example():
    rows = make_embeddings([0.9, 0.1, 0.2, 0.7])
    places, offsets = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 3, 5])
    queries = torch.tensor([[5.0, 0.0], [0.1, 0.0]], dtype=torch.float64)
    scores = score_own_candidates(queries, rows, places, offsets)
    assert scores.tolist() == pytest.approx([0.9, 0.9, 0.1, 0.2, 0.7], abs=2**-24)
    assert compare_gold(scores, offsets).num_tied.tolist() == [1, 0]


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
