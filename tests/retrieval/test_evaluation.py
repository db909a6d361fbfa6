import dataclasses

import pytest
import torch

from tracelib.metrics.ranking import RaggedIds
from tracelib.retrieval.evaluation import (
    QueryFacts,
    Ranking,
    Thoughts,
    describe_shallow_pools,
    rank_first_positives,
    tabulate,
)
from tracelib.retrieval.ranking import rank_pools

# M-BEIR in miniature: OVEN's own pool is documents 0 .. 3, document 4 is InfoSeek's.
OVEN = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]])
INFOSEEK = torch.tensor([[0.8, 0, 0.6]])
QUERIES = torch.tensor([[4.0, 0, 3], [3, 4, 0], [1, 1, 0]])
POSITIVES = [[0, 4], [1], [2]]


def make_facts(positives=POSITIVES, column="oven_task6", **changes):
    size = len(positives)
    return dataclasses.replace(
        QueryFacts(
            [column],
            torch.zeros(size, dtype=torch.long),
            RaggedIds.from_lists(positives),
            torch.tensor([len(ids) for ids in positives]),
            torch.full((size,), -1),
            torch.zeros(size, dtype=torch.long),
        ),
        **changes,
    )


def make_thoughts(size, seconds=None):
    return Thoughts(
        torch.arange(size) > 0,
        torch.full((size,), torch.nan),
        torch.zeros(size, dtype=torch.bool),
        [[5] * i for i in range(size)],
        torch.zeros(size, dtype=torch.bool),
        seconds,
    )


def rank(oven=OVEN, infoseek=INFOSEEK, queries=QUERIES):
    pools = {"oven_task6": [(0, oven)], "infoseek_task6": [(len(oven), infoseek)]}
    return rank_pools(queries, {"oven_task6": range(len(queries))}, pools, 50)


def tabulate_values(facts, rankings, seconds=None):
    rows = tabulate("run", "gate", facts, make_thoughts(len(facts), seconds), rankings)
    found = {(r.column, r.pool, r.subset, r.metric): r.value for r in rows}
    assert len(found) == len(rows)
    return found


def values_of(table, pool, metrics):
    return [table["oven_task6", pool, "all", metric] for metric in metrics]


RECALLS = ("recall@1", "recall@5")


def test_worked_example():
    rankings = rank()
    assert rankings["local"].places[:, :5].tolist() == [
        [0, 2, 3, 1, -1],
        [3, 1, 0, 2, -1],
        [3, 0, 1, 2, -1],
    ]
    table = tabulate_values(make_facts(), rankings)
    assert values_of(table, "local", RECALLS) == pytest.approx([1 / 3, 1])
    assert values_of(table, "union", RECALLS) == pytest.approx([1 / 3, 1])
    assert values_of(table, "local", ["headline"]) == [1]
    # Set recall of the local pool lacks the positive of InfoSeek, and is another number.
    assert values_of(table, "local", ["recall_set@5"]) == pytest.approx([2.5 / 3])
    assert values_of(table, "union", ["recall_set@5"]) == [1]
    assert values_of(table, "local", ["mrr"]) == pytest.approx([(1 + 1 / 2 + 1 / 4) / 3])
    assert values_of(table, "union", ["mrr"]) == pytest.approx([(1 + 1 / 2 + 1 / 5) / 3])
    # The first query finds one of two at rank 1 locally, both at 1 and 2 in the union pool.
    assert values_of(table, "local", ["map@5"]) == pytest.approx([(1 / 2 + 1 / 2 + 1 / 4) / 3])
    assert values_of(table, "union", ["map@5"]) == pytest.approx([(1 + 1 / 2 + 1 / 5) / 3])


def test_variant_positive_missing_from_the_pool():
    facts = make_facts([[0], [1], []], num_positives=torch.tensor([2, 1, 1]))
    table = tabulate_values(facts, rank(OVEN[[0, 1, 3]]))
    assert values_of(table, "local", RECALLS) == pytest.approx([1 / 3, 2 / 3])


def test_variant_reference_image_is_not_excluded():
    queries, pool = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 0], [0.8, 0.6]])
    table = tabulate_values(make_facts([[1]]), rank(pool, torch.tensor([[-1.0, 0]]), queries))
    assert values_of(table, "local", RECALLS) == [0, 1]


def test_variant_qrels_cut_down_to_the_local_pool():
    whole = tabulate_values(make_facts(), rank())
    cut = tabulate_values(make_facts([[0], [1], [2]]), rank())
    assert values_of(cut, "local", RECALLS) == values_of(whole, "local", RECALLS)
    assert values_of(cut, "union", ["recall@1"]) == [0]


def test_variant_documents_of_any_length():
    longer = OVEN * torch.tensor([[1.0], [1], [10], [1]])
    assert torch.equal(rank(longer)["local"].places, rank()["local"].places)


COLUMNS = QueryFacts(
    column_names=["a_task0", "fashioniq_task7"],
    column_codes=torch.tensor([0, 1, 0]),
    positives=RaggedIds.from_lists([[0], [3], [2, 4]]),
    num_positives=torch.tensor([1, 1, 3]),
    difficulty=torch.tensor([0, 1, 1]),
    prompt_numbers=torch.zeros(3, dtype=torch.long),
)
PLACES = torch.tensor([[0, 1, 2, 9, 9, 9], [9, 9, 9, 9, 9, 3], [4, 2, 1, 0, 9, 9]])


def test_rows_in_closed_form():
    ranking = Ranking(PLACES, torch.zeros(3, 6))
    table = tabulate_values(COLUMNS, {"local": ranking, "union": ranking}, seconds=1.5)
    assert table["a_task0", "local", "all", "recall@1"] == 1
    assert table["a_task0", "local", "all", "recall_set@5"] == pytest.approx((1 + 2 / 3) / 2)
    assert table["a_task0", "local", "hard", "recall_set@5"] == pytest.approx(2 / 3)
    assert table["fashioniq_task7", "local", "all", "recall@5"] == 0
    # FashionIQ is reported at 10, so the headline mean is no mean of one recall@k.
    assert table["fashioniq_task7", "local", "all", "headline"] == 1
    assert table["all", "local", "all", "headline"] == 1
    assert table["all", "local", "all", "recall@5"] == 0.5
    # The mean is over columns, not queries, and over those that have such queries.
    assert table["all", "local", "all", "think_rate"] == 0.75
    assert table["all", "local", "easy", "recall@1"] == 1
    assert table["a_task0", "local", "all", "tokens_per_query"] == 2
    assert table["all", "local", "all", "queries_per_second"] == 2
    assert ("fashioniq_task7", "local", "easy", "recall@1") not in table
    assert {subset for _, _, subset, _ in table} == {"all", "easy", "hard"}


def test_unknown_time_gives_no_speed():
    ranking = Ranking(PLACES, torch.zeros(3, 6))
    table = tabulate_values(COLUMNS, {"local": ranking}, seconds=None)
    assert "queries_per_second" not in {metric for *_, metric in table}


def test_recall_under_each_prompt_shows_its_spread():
    facts = make_facts([[0], [0], [1], [1]], prompt_numbers=torch.tensor([1, 2, 1, 2]))
    ranking = Ranking(torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]]), torch.zeros(4, 2))
    table = tabulate_values(facts, {"local": ranking})
    column = "oven_task6", "local"
    assert table[(*column, "all", "recall@1")] == 0.5
    assert table[(*column, "prompt_1", "recall@1")] == 1
    assert table[(*column, "prompt_2", "recall@1")] == 0
    assert table[("all", "local", "prompt_2", "headline")] == 1
    metrics = {metric for _, _, subset, metric in table if subset == "prompt_1"}
    assert metrics == {"headline", *(f"recall@{k}" for k in (1, 5, 10, 20, 50))}


def test_queries_are_selected_by_column_subset_and_prompt():
    facts = dataclasses.replace(COLUMNS, prompt_numbers=torch.tensor([1, 1, 2]))
    assert facts.subsets == ["all", "easy", "hard", "prompt_1", "prompt_2"]
    assert facts.select("a_task0", "all").tolist() == [0, 2]
    assert facts.select("a_task0", "hard").tolist() == [2]
    assert facts.select("a_task0", "prompt_2").tolist() == [2]
    assert facts.select("fashioniq_task7", "easy").tolist() == []
    assert facts.columns == ["a_task0", "fashioniq_task7", "a_task0"]
    assert COLUMNS.subsets == ["all", "easy", "hard"]


def test_rank_of_the_first_positive():
    ranking = Ranking(PLACES[:, :5], torch.zeros(3, 5))
    assert rank_first_positives(COLUMNS, ranking).tolist() == [1, 0, 1]


def test_facts_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"different numbers of queries.*'difficulty': 2"):
        make_facts(difficulty=torch.tensor([0, 1]))


def test_shallow_pools_are_named():
    assert "a_task0 (3)" in describe_shallow_pools({"a_task0": range(3), "b_task1": range(50)})
    assert describe_shallow_pools({"a_task0": range(50)}) == ""
