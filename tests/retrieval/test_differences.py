import dataclasses

import pytest
import torch

from tracelib.metrics.significance import bootstrap_interval, sign_flip_p_value
from tracelib.retrieval.differences import check_metric, compare_queries
from tracelib.retrieval.per_query import PerQuery

# Hits at 5 of A and B in `a_task0`: 1 0 0 1 and 1 1 1 1; FashionIQ is reported at 10: 1 and 0.
RANKS_A = [1, 0, 6, 2, 7]
RANKS_B = [1, 2, 5, 4, 11]


def make_queries(ranks, union=None, prompts=None, ids=None, thinks=False):
    size = len(ranks)
    return PerQuery(
        ids or [f"0:{i}" for i in range(size)],
        ["a_task0"] * (size - 1) + ["fashioniq_task7"],
        torch.tensor(prompts or [0] * size),
        torch.full((size,), -1),
        torch.ones(size),
        {"local": torch.tensor(ranks), "union": torch.tensor(union or ranks)},
        torch.tensor([thinks] * size),
        torch.ones(size),
        torch.full((size,), torch.nan),
        torch.zeros(size, dtype=torch.bool),
    )


def compare(a, b, metric="headline", seed=0):
    return {
        (d.pool, d.column): d for d in compare_queries(a, b, metric, num_resamples=500, seed=seed)
    }


def test_differences_in_closed_form():
    found = compare(make_queries(RANKS_A), make_queries(RANKS_B, union=RANKS_A, thinks=True))
    column = found["local", "a_task0"]
    assert (column.value_a, column.value_b, column.difference) == (0.5, 1, 0.5)
    assert column.num_queries == 4
    assert column.p_value == 0.5  # two queries differ: of four ways to flip them, two are as far
    assert (column.think_rate_a, column.think_rate_b) == (0, 1)
    fashion = found["local", "fashioniq_task7"]
    assert (fashion.value_a, fashion.value_b) == (1, 0)
    mean = found["local", "all"]
    assert (mean.value_a, mean.value_b, mean.difference) == (0.75, 0.5, -0.25)
    assert mean.num_queries == 5
    assert list(found) == [
        (pool, name)
        for pool in ("local", "union")
        for name in ("a_task0", "fashioniq_task7", "all")
    ]
    same = found["union", "all"]
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_intervals_and_p_values_are_of_the_paired_differences():
    found = compare(make_queries(RANKS_A), make_queries(RANKS_B), seed=3)
    strata = [torch.tensor([0.0, 1, 1, 0]), torch.tensor([-1.0])]
    for column, chosen in (("a_task0", strata[:1]), ("all", strata)):
        row = found["local", column]
        assert (row.low, row.high) == bootstrap_interval(chosen, 500, 3)
        assert row.p_value == sign_flip_p_value(chosen, 500, 3)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("recall@1", (0.25, 0.25)), ("recall@5", (0.5, 1)), ("recall@50", (0.75, 1))],
)
def test_recall_at_any_depth(metric, expected):
    row = compare(make_queries(RANKS_A), make_queries(RANKS_B), metric)["local", "a_task0"]
    assert (row.value_a, row.value_b) == expected


def test_reciprocal_rank():
    row = compare(make_queries(RANKS_A), make_queries(RANKS_B), "mrr")["local", "a_task0"]
    assert row.value_a == pytest.approx((1 + 1 / 6 + 1 / 2) / 4)
    assert row.value_b == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 4) / 4)


def test_queries_are_paired_by_id_not_by_order():
    a, b = make_queries(RANKS_A), make_queries(RANKS_B)
    order = [3, 1, 4, 0, 2]
    shuffled = PerQuery(
        [b.query_ids[i] for i in order],
        [b.columns[i] for i in order],
        *(t[order] for t in (b.prompt_numbers, b.difficulty, b.num_positives)),
        {pool: ranks[order] for pool, ranks in b.first_ranks.items()},
        b.thinks[order],
        b.num_tokens[order],
        b.think_probability,
        b.emb_is_first,
    )
    assert compare(a, shuffled) == compare(a, b)


def test_prompts_of_one_query_are_one_observation():
    # Two queries under eight prompts each, B always better: sixteen rows, but two observations.
    prompts, ids = [*range(1, 9)] * 2 + [1], ["0:1"] * 8 + ["0:2"] * 8 + ["7:1"]
    a = make_queries([0] * 17, prompts=prompts, ids=ids)
    b = make_queries([1] * 17, prompts=prompts, ids=ids)
    row = compare(a, b)["local", "a_task0"]
    assert row.num_queries == 2
    assert row.p_value == 0.5  # as sixteen independent queries it would be 2 / 2^16
    mixed = make_queries([1, 0] * 8 + [1], prompts=prompts, ids=ids)
    assert compare(a, mixed)["local", "a_task0"].value_b == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["0:0", "0:1", "0:2", "0:9", "0:4"]}, "2 queries .* 0:3 of a_task0 in A"),
        ({"prompts": [0, 0, 0, 0, 1]}, "2 queries .* 0:4 of fashioniq_task7 in A"),
        ({"ids": ["0:0", "0:0", "0:2", "0:3", "0:4"]}, "a query occurs twice"),
    ],
)
def test_other_queries_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        compare(make_queries(RANKS_A), make_queries(RANKS_B, **change))


def test_a_query_that_only_b_has_is_named_as_such():
    a, b = make_queries(RANKS_A), make_queries(RANKS_B)
    with pytest.raises(ValueError, match=r"^1 query was .* 0:0 of a_task0 in B$"):
        compare(
            dataclasses.replace(
                a,
                query_ids=a.query_ids[1:],
                columns=a.columns[1:],
                prompt_numbers=a.prompt_numbers[1:],
            ),
            b,
        )


@pytest.mark.parametrize("metric", ["recall", "recall@0", "recall@51", "recall@x", "map@5", ""])
def test_metric_is_checked(metric):
    with pytest.raises(ValueError, match=f"metric is '{metric}'; allowed are headline, mrr"):
        check_metric(metric, 50)


@pytest.mark.parametrize("metric", ["headline", "mrr", "recall@1", "recall@50"])
def test_known_metrics_pass(metric):
    check_metric(metric, 50)
