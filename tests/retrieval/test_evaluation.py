import pytest
import torch

from tracelib.retrieval.evaluation import (
    QueryFacts,
    Thoughts,
    describe_shallow_pools,
    rank_pools,
    tabulate,
)

POOLS = {"a_task0": [0, 1, 2], "b_task1": [3, 4]}
CANDIDATES = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])
FACTS = QueryFacts(
    columns=["a_task0", "b_task1", "a_task0"],
    positives=[[0], [3], [2, 4]],
    difficulty=torch.tensor([0, 1, 1]),
)
QUERIES = torch.tensor([[1.0, 0.9, 0], [0, 0.2, 1], [0, 0.6, 1]])


@pytest.fixture
def thoughts():
    return Thoughts(
        QUERIES,
        torch.tensor([False, True, True]),
        torch.tensor([0.1, 0.9, 0.8]),
        [[], [5, 6], [7]],
        torch.tensor([False, False, True]),
        seconds=1.5,
    )


@pytest.fixture
def rankings():
    return rank_pools(QUERIES, CANDIDATES, FACTS, POOLS)


def test_local_rankings_stay_in_their_pool(rankings):
    assert rankings["local"].places[0, :4].tolist() == [0, 1, 2, -1]
    assert rankings["local"].places[1, :3].tolist() == [4, 3, -1]
    assert rankings["local"].scores[1, 2].item() == -torch.inf


def test_union_ranking_is_over_all_candidates(rankings):
    assert sorted(rankings["union"].places[0].tolist()) == [0, 1, 2, 3, 4]
    assert rankings["union"].places[0, 0] == 3  # (1, 1, 0) is nearer than (1, 0, 0)
    assert rankings["union"].places[2, 0] == 4


def test_rows_in_closed_form(rankings, thoughts):
    rows = {
        (r.column, r.pool, r.subset, r.metric): r.value
        for r in tabulate("run", "gate", FACTS, thoughts, rankings)
    }
    assert rows["a_task0", "local", "all", "recall@1"] == 1.0
    assert rows["b_task1", "local", "all", "recall@1"] == 0.0
    assert rows["b_task1", "local", "all", "recall@5"] == 1.0
    assert rows["a_task0", "union", "easy", "recall@1"] == 0.0
    assert rows["a_task0", "union", "hard", "recall@1"] == 1.0
    # The mean is over columns, not queries.
    assert rows["all", "local", "all", "recall@1"] == 0.5
    assert rows["all", "local", "easy", "recall@1"] == 1.0
    assert rows["all", "local", "all", "think_rate"] == 0.75
    assert rows["a_task0", "local", "all", "tokens_per_query"] == 1.5
    assert rows["all", "local", "all", "queries_per_second"] == 2.0
    assert ("b_task1", "local", "easy", "recall@1") not in rows


def test_shallow_pools_are_named():
    assert "a_task0 (3)" in describe_shallow_pools(POOLS)
    assert describe_shallow_pools({"a_task0": range(50)}) == ""
