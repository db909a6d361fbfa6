import pytest
import torch

from tests.reference.ranking import find_standing as find_slowly
from tracelib.metrics.ranking import RaggedIds
from tracelib.retrieval.positive_ranks import find_standing


def cut(rows, size, first_place=0):
    """Return a pool as chunks of some size."""
    return lambda: (
        (first_place + start, rows[start : start + size]) for start in range(0, len(rows), size)
    )


def make_pool(num_queries=70, num_candidates=230, size=6):
    """Return vectors, half of the candidates copies, and positives, some of them in no pool."""
    rng = torch.Generator().manual_seed(0)
    queries = torch.randn(num_queries, size, generator=rng)
    candidates = torch.randn(num_candidates // 2, size, generator=rng).repeat(2, 1)
    positives = [
        torch.randperm(num_candidates + 100, generator=rng)[: i % 5].tolist()
        for i in range(num_queries)
    ]
    return queries, candidates, positives


def test_agrees_with_a_slow_reference_in_exact_arithmetic():
    queries, candidates, positives = make_pool()
    found = find_standing(queries, RaggedIds.from_lists(positives), cut(candidates, 50))
    slow = [
        find_slowly(query.tolist(), candidates.tolist(), own)
        for query, own in zip(queries, positives, strict=True)
    ]
    assert found.rank.tolist() == [rank for rank, _ in slow]
    assert len(set(found.rank.tolist())) > 20
    assert (found.rank == 0).sum() > 3
    for margin, (rank, expected) in zip(found.margin.tolist(), slow, strict=True):
        assert margin == pytest.approx(expected, abs=1e-6, nan_ok=rank == 0)


@pytest.mark.parametrize("size", [1, 7, 229, 230])
def test_chunks_change_nothing(size):
    queries, candidates, positives = make_pool()
    lists = RaggedIds.from_lists(positives)
    whole = find_standing(queries, lists, cut(candidates, 1000))
    parts = find_standing(queries, lists, cut(candidates, size))
    assert torch.equal(parts.rank, whole.rank)
    assert torch.equal(parts.margin.nan_to_num(9), whole.margin.nan_to_num(9))


def test_many_queries_agree_with_each_alone():
    queries, candidates, positives = make_pool(num_queries=1500, num_candidates=40)
    whole = find_standing(queries, RaggedIds.from_lists(positives), cut(candidates, 40))
    for i in (0, 1023, 1024, 1499):
        one = find_standing(
            queries[i : i + 1], RaggedIds.from_lists([positives[i]]), cut(candidates, 40)
        )
        assert one.rank.item() == whole.rank[i].item()


def test_another_positive_and_a_tie_do_not_count_but_a_better_negative_does():
    query = torch.tensor([[1.0, 0.0]])
    better, copy = [0.8, 0.6], [0.6, 0.8]
    pool = torch.tensor([copy, better, [0.6, 0.8], [0.0, 1.0]])

    def rank(positives):
        return find_standing(query, RaggedIds.from_lists([positives]), cut(pool, 2)).rank.item()

    assert rank([2]) == 2  # `better` is above it, its copy is not
    assert rank([2, 1]) == 1  # `better` is a positive too
    assert rank([0, 3]) == 2  # the best positive decides
    assert rank([3]) == 4


def test_places_are_those_of_the_union_pool():
    pool = torch.eye(3)
    lists = RaggedIds.from_lists([[101], [2]])
    found = find_standing(torch.eye(3)[:2] + 0.5, lists, cut(pool, 2, first_place=100))
    assert found.rank.tolist() == [2, 0]
    assert found.margin[1].isnan()


def test_a_pool_without_negatives_has_its_best_other_at_the_least_cosine():
    found = find_standing(torch.eye(2)[:1], RaggedIds.from_lists([[0]]), cut(torch.eye(2)[:1], 1))
    assert (found.rank.item(), found.margin.item()) == (1, 2.0)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="positives of 1 queries, but 2 queries"):
        find_standing(torch.eye(2), RaggedIds.from_lists([[0]]), cut(torch.eye(2), 1))
    with pytest.raises(ValueError, match="candidate row 1 has norm 0"):
        find_standing(
            torch.eye(2), RaggedIds.from_lists([[0], [0]]), cut(torch.tensor([[1.0, 0], [0, 0]]), 2)
        )
