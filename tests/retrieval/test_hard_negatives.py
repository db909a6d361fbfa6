import math
from functools import partial

import pytest
import torch

from tests.reference import hard_negatives as reference
from tests.reference.search import search_to_the_bit
from tracelib.metrics.ranking import RaggedIds
from tracelib.retrieval.hard_negatives import (
    SHOWN_CAPS,
    HardNegatives,
    MiningRule,
    find_hard_negatives,
)

STEP = 2**-24  # of a cosine


def point(cosine):
    """Return a unit vector at this cosine to the first axis."""
    return [cosine, math.sqrt(1 - cosine**2)]


def find(queries, candidates, positives, rule, contents=None, chunk=None):
    rows, chunk = torch.as_tensor(candidates), chunk or 1 + len(candidates)
    return find_hard_negatives(
        torch.as_tensor(queries),
        [(start, rows[start : start + chunk]) for start in range(0, len(rows), chunk)],
        torch.arange(len(rows)) if contents is None else torch.as_tensor(contents),
        RaggedIds.from_lists(positives),
        rule,
    )


@pytest.mark.parametrize("chunk", [64, 300])
@pytest.mark.parametrize("cap", [-1.0, 0.1, 0.45, 0.7, 1.0])
@pytest.mark.parametrize(("depth", "num_negatives"), [(1, 1), (9, 3), (40, 40), (400, 7)])
def test_equals_a_walk_down_the_ranking(chunk, cap, depth, num_negatives):
    torch.manual_seed(depth)
    candidates = torch.randn(300, 6)
    contents = torch.arange(300)
    twins = torch.arange(0, 300, 7)
    candidates[twins], contents[twins] = candidates[twins // 2], contents[twins // 2]
    queries = torch.randn(23, 6)
    positives = [torch.randperm(300)[: i % 12].tolist() for i in range(23)]
    positives = [[int(contents[p]) for p in own] for own in positives]
    rule = MiningRule(depth, cap, num_negatives)
    mined = find(queries, candidates, positives, rule, contents, chunk)
    scores, places = search_to_the_bit(queries, candidates, 300)
    num_kept = 0
    for i, own in enumerate(positives):
        row = torch.empty(300)
        row[places[i]] = scores[i]
        walk = partial(reference.mine, row.tolist(), contents.tolist(), set(own), depth)
        kept, num_positives, num_capped = walk(torch.tensor(cap).item(), num_negatives)
        assert mined.places[i].tolist() == kept + [-1] * (num_negatives - len(kept))
        assert mined.scores[i][: len(kept)].equal(row[kept])
        assert (mined.scores[i][len(kept) :] == -torch.inf).all()
        assert (mined.num_positives[i], mined.num_capped[i]) == (num_positives, num_capped)
        num_kept += len(kept)
        for number, other in enumerate(SHOWN_CAPS):
            assert mined.num_left[i, number] == len(walk(other, num_negatives)[0])
    assert num_kept == 0 if cap == -1 else num_kept > 0 or depth < 300


def test_the_cap_holds_to_the_last_step_of_a_cosine():
    # 0.75 is a step of a cosine: a step above is dropped, at the cap and below is kept
    rows = torch.tensor([point(0.75 + n * STEP) for n in (2, 1, 0, -1)], dtype=torch.float64)
    query = torch.tensor([[1.0, 0.0]])
    scores = search_to_the_bit(query, rows, 4)[0][0]
    assert ((scores - 0.75) / STEP).tolist() == [2, 1, 0, -1]
    for cap, expected in (
        (0.75 + STEP, [1, 2, 3]),
        (0.75, [2, 3, -1]),
        (0.75 - STEP, [3, -1, -1]),
        (0.75 - 2 * STEP, [-1, -1, -1]),
    ):
        assert find(query, rows, [[]], MiningRule(4, cap, 3)).places.tolist() == [expected]


@pytest.mark.parametrize("cap", [0.6, 0.7, 0.8, 0.9, 0.95])
def test_a_cosine_that_prints_as_the_cap_is_not_above_it(cap):
    """The cap is no float32, and may round to either side."""
    rows = torch.tensor([point(cap + 2 * STEP), point(cap)], dtype=torch.float64)
    mined = find(torch.tensor([[1.0, 0.0]]), rows, [[]], MiningRule(2, cap, 1))
    assert mined.places.tolist() == [[1]]
    assert mined.scores.item() == torch.tensor(cap).item()


def test_the_cap_comes_first_then_the_nearest_are_taken():
    rows = [point(cosine) for cosine in (0.95, 0.9, 0.71, 0.69, 0.5, 0.4)]
    query = [[1.0, 0.0]]
    assert find(query, rows, [[]], MiningRule(6, 0.7, 2)).places.tolist() == [[3, 4]]
    # the other order would leave nothing
    assert find(query, rows, [[]], MiningRule(2, 0.7, 2)).places.tolist() == [[-1, -1]]


def test_positives_do_not_count_towards_the_depth():
    rows = [point(cosine) for cosine in (0.6, 0.59, 0.58, 0.57, 0.56)]
    mined = find([[1.0, 0.0]], rows, [[0, 1, 3]], MiningRule(1, 0.7, 1))
    assert mined.places.tolist() == [[2]]
    assert mined.num_positives.tolist() == [2]  # the last one stands behind what was looked at


def test_copies_of_a_positive_are_no_negatives_and_copies_of_a_negative_only_one():
    rows = [point(0.6), point(0.6), point(0.5), point(0.55), point(0.5)]
    contents = [0, 0, 2, 3, 2]
    mined = find([[1.0, 0.0]], rows, [[0]], MiningRule(5, 0.7, 4), contents)
    assert mined.places.tolist() == [[3, 2, -1, -1]]
    assert mined.num_positives.tolist() == [2]
    without = find([[1.0, 0.0]], rows, [[0]], MiningRule(5, 0.7, 4))
    assert without.places.tolist() == [[1, 3, 2, 4]]


def test_a_positive_of_another_pool_and_an_empty_pool_are_no_trouble():
    rows = [point(0.6), point(0.5)]
    mined = find([[1.0, 0.0]], rows, [[99]], MiningRule(5, 0.7, 2))
    assert mined.places.tolist() == [[0, 1]]
    mined = find([[1.0, 0.0]], torch.empty(0, 2), [[99]], MiningRule(5, 0.7, 2))
    assert mined.places.tolist() == [[-1, -1]]


def test_summary_counts_queries_and_means_what_was_kept():
    rows = [point(cosine) for cosine in (0.9, 0.625, 0.5)]
    queries = [[1.0, 0.0]] * 3
    rule = MiningRule(3, 0.7, 2)
    mined = HardNegatives.allocate(4, 2)  # the last query is never filled in
    part = find(queries, rows, [[0], [2], [1, 2]], rule)
    mined.fill(torch.tensor([2, 0, 1]), part, torch.tensor([10, 11, 12]))
    assert mined.places.tolist() == [[11, -1], [-1, -1], [11, 12], [-1, -1]]
    summary = mined.summarize()
    caps = summary.pop("caps")
    assert summary == {
        "num_queries": 4,
        "num_without": 2,
        "num_with_fewer": 1,
        "num_with_all": 1,
        "num_negatives": 3,
        "num_dropped_as_positive": 1 + 1 + 2,
        "num_dropped_by_cap": 2,
        "mean_similarity": pytest.approx((0.625 + 0.5 + 0.625) / 3, abs=1e-7),
    }
    assert [row["max_similarity"] for row in caps] == list(SHOWN_CAPS)
    assert [row["share_with_any"] for row in caps] == [0.5, 0.5, 0.75, 0.75, 0.75]
    assert [row["share_with_all"] for row in caps] == [0.25, 0.25, 0.5, 0.5, 0.5]
    none = mined.select(torch.tensor([1, 3])).summarize()
    assert (none["num_without"], none["mean_similarity"]) == (2, None)


def test_a_collapsed_encoder_is_refused():
    with pytest.raises(ValueError, match="all 3 candidate embeddings point the same way"):
        find([[1.0, 0.0]], [[2.0, 1.0]] * 3, [[0]], MiningRule())
    alike = find([[1.0, 0.0]], [[2.0, 1.0]] * 3, [[0]], MiningRule(), [0, 0, 0])
    assert alike.places.tolist() == [[-1] * 5]  # copies of one candidate may well


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"max_similarity": 1.01}, r"max_similarity is 1\.01, allowed -1 \.\. 1"),
        ({"max_similarity": math.nan}, "max_similarity is nan"),
        ({"num_negatives": 0}, r"num_negatives is 0, allowed 1 \.\. 50"),
        ({"num_negatives": 6, "depth": 5}, r"num_negatives is 6, allowed 1 \.\. 5, which is depth"),
    ],
)
def test_a_number_out_of_its_range_is_named(numbers, message):
    with pytest.raises(ValueError, match=message):
        MiningRule(**numbers)
