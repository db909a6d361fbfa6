import pytest
import torch

from tests.reference.recall import any_hit, fractional
from tracelib.metrics.recall import RecallAtK, hit_at_k
from tracelib.retrieval.search import TopKSearch

# M-BEIR in miniature. Documents 0 .. 3 are the column's own pool, 4 is from another dataset.
QUERIES = torch.tensor([[4.0, 0, 3], [3, 4, 0], [1, 1, 0]])
DOCUMENTS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0.8, 0, 0.6]])
POSITIVES = [[0, 4], [1], [2]]
KS = (1, 2, 4, 5)


def search_pool(queries, documents):
    search = TopKSearch(queries, k=5)
    search.add(documents, 0)
    return search.result()


def rank_pool(documents=DOCUMENTS):
    return search_pool(QUERIES, documents)[1]


def recall_of(ranked_ids, positives, ks=KS):
    return [hit_at_k(ranked_ids, positives, k).mean().item() for k in ks]


def fractional_recall_of(ranked_ids, positives, ks=KS):
    rankings = ranked_ids.tolist()
    return [
        sum(fractional(r, p, k) for r, p in zip(rankings, positives, strict=True)) / len(rankings)
        for k in ks
    ]


@pytest.mark.parametrize(
    ("pool_size", "expected", "fractional_expected"),
    [
        (4, [1 / 3, 2 / 3, 1, 1], [1 / 6, 1 / 2, 5 / 6, 5 / 6]),
        (5, [1 / 3, 2 / 3, 2 / 3, 1], [1 / 6, 2 / 3, 2 / 3, 1]),
    ],
    ids=["local", "union"],
)
def test_worked_example(pool_size, expected, fractional_expected):
    ranked_ids = rank_pool(DOCUMENTS[:pool_size])
    assert recall_of(ranked_ids, POSITIVES) == pytest.approx(expected)
    # the negative control: set recall is another number on the same rankings
    assert fractional_recall_of(ranked_ids, POSITIVES) == pytest.approx(fractional_expected)
    assert expected != fractional_expected


def test_rankings_of_the_worked_example():
    assert rank_pool(DOCUMENTS[:4]).tolist() == [[0, 2, 3, 1], [3, 1, 0, 2], [3, 0, 1, 2]]
    assert rank_pool().tolist() == [[4, 0, 2, 3, 1], [3, 1, 0, 4, 2], [3, 0, 1, 4, 2]]


def test_query_without_positive_in_the_pool_stays_in_the_mean():
    kept = [0, 1, 3]  # variant B: document 2, the only positive of the third query, is gone
    positives = [[0], [1], []]
    ranked_ids = torch.tensor(kept)[rank_pool(DOCUMENTS[kept])]
    assert recall_of(ranked_ids, positives, (1, 2, 5)) == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_reference_image_of_the_query_is_not_excluded():
    pool = torch.tensor([[1.0, 0], [0.8, 0.6]])  # variant C: the query's own image, the target
    ranked_ids = search_pool(torch.tensor([[1.0, 0]]), pool)[1]
    assert recall_of(ranked_ids, [[1]], (1, 5)) == [0, 1]


def test_positive_of_another_dataset_counts_in_the_union_pool():
    filtered = [[0], [1], [2]]  # variant D: qrels cut down to the local pool
    assert recall_of(rank_pool(DOCUMENTS[:4]), filtered) == recall_of(
        rank_pool(DOCUMENTS[:4]), POSITIVES
    )
    assert recall_of(rank_pool(), POSITIVES, [1]) == pytest.approx([1 / 3])
    assert recall_of(rank_pool(), filtered, [1]) == [0]


def test_hit_at_a_score_of_zero_or_below_counts():
    pool = torch.tensor([[0.0, 1], [-1, 0]])
    scores, ranked_ids = search_pool(torch.tensor([[1.0, 0]]), pool)
    assert scores.tolist() == [[0, -1]]
    assert hit_at_k(ranked_ids, [[0]], 1).item() == 1
    assert hit_at_k(ranked_ids, [[1]], 2).item() == 1


def test_padding_never_hits_padding():
    ranked_ids = torch.tensor([[3, -1], [3, -1]])
    assert hit_at_k(ranked_ids, torch.tensor([[-1, -1], [3, -1]]), 2).tolist() == [0, 1]


def test_agrees_with_sets_for_lists_and_tensors():
    ranked_ids = torch.stack([torch.randperm(30)[:10] for _ in range(50)])
    positives = [torch.randperm(30)[: i % 4].tolist() for i in range(50)]
    padded = torch.full((50, 3), -1)
    for row, ids in zip(padded, positives, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    for k in (1, 3, 10):
        expected = [any_hit(r, p, k) for r, p in zip(ranked_ids.tolist(), positives, strict=True)]
        assert 0 < sum(expected) < 50
        assert hit_at_k(ranked_ids, positives, k).tolist() == expected
        assert hit_at_k(ranked_ids, padded, k).tolist() == expected


def test_metric_counts_queries_not_batches():
    metric = RecallAtK((1, 5))
    metric.update(torch.tensor([[0, 1, 2]]), [[0]])
    metric.update(torch.tensor([[0, 1, 2]] * 3), [[1], [1], []])
    result = metric.compute()
    assert {name: value.item() for name, value in result.items()} == {
        "recall@1": 0.25,  # the mean of batch means would be 0.5
        "recall@5": 0.75,
    }


def test_merged_metrics_equal_one_over_everything():
    ranked_ids, whole = rank_pool(), RecallAtK(KS)
    whole.update(ranked_ids, POSITIVES)
    first, second = RecallAtK(KS), RecallAtK(KS)
    first.update(ranked_ids[:1], POSITIVES[:1])
    second.update(ranked_ids[1:], POSITIVES[1:])
    first.merge_state(second)
    assert first.compute() == whole.compute()


def test_reset_forgets():
    metric = RecallAtK((1,))
    metric.update(torch.tensor([[0]]), [[1]])
    metric.reset()
    metric.update(torch.tensor([[0]]), [[0]])
    assert metric.compute()["recall@1"].item() == 1


def test_no_query_has_no_recall():
    metric = RecallAtK((1,))
    metric.update(torch.empty(0, 5, dtype=torch.long), [])
    with pytest.raises(ValueError, match="recall of 0 queries"):
        metric.compute()


@pytest.mark.parametrize(
    ("ranked_ids", "positives", "k", "message"),
    [
        (torch.tensor([[0]]), [[0]], 0, "k is 0"),
        (torch.tensor([0]), [[0]], 1, r"shape \(1,\)"),
        (torch.tensor([[0], [1]]), [[0]], 1, "positives for 1 queries, but 2 rankings"),
    ],
)
def test_misuse_is_named(ranked_ids, positives, k, message):
    with pytest.raises(ValueError, match=message):
        hit_at_k(ranked_ids, positives, k)


@pytest.mark.parametrize("ks", [(), (0, 1), (5, 5)])
def test_depths_are_checked(ks):
    with pytest.raises(ValueError, match="expected different depths"):
        RecallAtK(ks)
