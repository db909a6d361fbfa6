import pytest
import torch
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from tests.reference.ranking import average_precision, first_rank
from tests.reference.recall import any_hit, fractional
from tracelib.metrics.ranking import (
    RaggedIds,
    average_precision_at_k,
    first_positive_rank,
    hit_within_k,
    mark_positives,
    reciprocal_rank,
    set_recall_at_k,
)

NUM_QUERIES = 80


@pytest.fixture
def rankings():
    return torch.stack([torch.randperm(60)[:20] for _ in range(NUM_QUERIES)])


@pytest.fixture
def positives():
    return [torch.randperm(60)[: i % 7].tolist() for i in range(NUM_QUERIES)]


def test_agrees_with_one_query_at_a_time(rankings, positives):
    num_positives = [len(p) + 1 for p in positives]  # one more, which no pool holds
    counts = torch.tensor(num_positives)
    marks = mark_positives(rankings, RaggedIds.from_lists(positives))
    pairs = list(zip(rankings.tolist(), positives, num_positives, strict=True))
    assert marks.tolist() == [[c in p for c in r] for r, p, _ in pairs]
    ranks = first_positive_rank(marks)
    assert ranks.tolist() == [first_rank(r, p) for r, p, _ in pairs]
    assert len(set(ranks.tolist())) > 5
    for k in (1, 5, 20):
        assert hit_within_k(ranks, k).tolist() == [any_hit(r, p, k) for r, p, _ in pairs]
        expected = [fractional(r, [*p, 99], k) for r, p, _ in pairs]
        assert set_recall_at_k(marks, counts, k).tolist() == pytest.approx(expected)
        expected = [average_precision(r, p, k, n) for r, p, n in pairs]
        assert average_precision_at_k(marks, counts, k).tolist() == pytest.approx(expected)


def test_any_hit_and_set_recall_are_far_apart_with_many_positives():
    # Five captions of a picture, one of them found: M-BEIR counts 1, set recall a fifth.
    marks = mark_positives(
        torch.tensor([[7, 100, 101, 102, 103]]), RaggedIds.from_lists([[7, 8, 9, 10, 11]])
    )
    assert hit_within_k(first_positive_rank(marks), 5).tolist() == [True]
    assert set_recall_at_k(marks, torch.tensor([5]), 5).tolist() == [0.2]


def test_average_precision_in_closed_form():
    marks = torch.tensor([[True, False, True, False, False], [True] * 5])
    values = average_precision_at_k(marks, torch.tensor([3, 174]), 5)
    assert values.tolist() == pytest.approx([(1 + 2 / 3) / 3, 1.0])
    # Divided by all positives, a perfect list of five would score 5 / 174.
    assert average_precision_at_k(marks, torch.tensor([3, 174]), 1).tolist() == [1.0, 1.0]


def test_why_these_are_not_those_of_torchmetrics():
    scores, target = torch.tensor([0.9, 0.0, -0.5]), torch.tensor([False, False, True])
    marks, one = target[None], torch.tensor([1])
    assert set_recall_at_k(marks, one, 3).item() == 1
    assert retrieval_recall(scores, target, top_k=3) == 0  # the score is below 0
    assert reciprocal_rank(first_positive_rank(marks)).item() == pytest.approx(1 / 3)
    assert retrieval_reciprocal_rank(scores, target) == 0
    missed = torch.tensor([True, False, False])  # of four positives one is found
    assert average_precision_at_k(missed[None], torch.tensor([4]), 3).item() == pytest.approx(1 / 3)
    assert retrieval_average_precision(scores + 1, missed, top_k=3) == 1


def test_reciprocal_rank_of_a_missed_positive_is_zero():
    assert reciprocal_rank(torch.tensor([0, 1, 50])).tolist() == [0, 1, 0.02]


def test_a_positive_of_another_query_is_none_of_this_one():
    rankings = torch.tensor([[0, 1], [0, 1]])
    marks = mark_positives(rankings, RaggedIds.from_lists([[1], [0]]))
    assert marks.tolist() == [[False, True], [True, False]]


def test_padding_is_never_a_positive():
    largest = 2**32 - 1  # one query's largest id and the next one's padding must not meet
    rankings = torch.tensor([[largest, -1], [-1, -1]])
    marks = mark_positives(rankings, RaggedIds.from_lists([[largest], [0]]))
    assert marks.tolist() == [[True, False], [False, False]]


def test_a_list_without_ranks_or_positives():
    none = RaggedIds.from_lists([[], []])
    assert not mark_positives(torch.zeros(2, 3, dtype=torch.long), none).any()
    empty = torch.zeros(2, 0, dtype=torch.long)
    marks = mark_positives(empty, RaggedIds.from_lists([[1], [2]]))
    assert first_positive_rank(marks).tolist() == [0, 0]


def test_ragged_ids_are_lists():
    lists = [[5, 6], [], [7]]
    ragged = RaggedIds.from_lists(lists)
    assert list(ragged) == lists
    assert ragged[-1] == [7]
    assert ragged[1:] == [[], [7]]
    assert ragged.lengths.tolist() == [2, 0, 1]
    assert list(RaggedIds.from_padded(torch.tensor([[5, 6], [-1, -1], [7, -1]]))) == lists
    with pytest.raises(IndexError, match="no list 3 of 3"):
        ragged[3]


@pytest.mark.parametrize(
    ("offsets", "ids", "message"),
    [
        ([0, 1], [1, 2], r"offsets from and to \(0, 1\) do not divide 2 ids"),
        ([1, 2], [1, 2], r"\(1, 2\) do not divide"),
        ([0, 3, 2], [1, 2], "do not divide"),
        ([], [], "None do not divide"),
        ([0, 1], [-1], "ids are -1 .. -1"),
        ([0, 1], [2**32], "allowed 0 .. 2"),
    ],
)
def test_ragged_ids_that_do_not_fit_are_refused(offsets, ids, message):
    with pytest.raises(ValueError, match=message):
        RaggedIds(torch.tensor(offsets, dtype=torch.long), torch.tensor(ids, dtype=torch.long))


@pytest.mark.parametrize("metric", [set_recall_at_k, average_precision_at_k])
@pytest.mark.parametrize(
    ("num_positives", "k", "message"),
    [(0, 5, "query 0 has 0 positives"), (1, 5, "1 positives and 2 in"), (2, 0, "k is 0")],
)
def test_misuse_is_named(metric, num_positives, k, message):
    with pytest.raises(ValueError, match=message):
        metric(torch.tensor([[True, True]]), torch.tensor([num_positives]), k)


def test_depth_of_a_hit_is_checked():
    with pytest.raises(ValueError, match="k is 0"):
        hit_within_k(torch.tensor([1]), 0)
