"""Two runs over the same queries: what differs, per column and pool, and how surely.

Shapes: Q rows of a run, N queries of a column, each once however many prompts it was asked under.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tracelib.metrics.ranking import hit_within_k, reciprocal_rank
from tracelib.metrics.significance import bootstrap_interval, sign_flip_p_value
from tracelib.retrieval.columns import headline_k
from tracelib.retrieval.evaluation import HEADLINE
from tracelib.retrieval.per_query import PerQuery

POOLS = ("local", "union")


@dataclass(frozen=True)
class Difference:
    """Two runs, A and B, on one column and pool.

    Args:
        pool: `local` or `union`.
        column: The column, or `all` for the plain mean over columns.
        num_queries: Queries counted.
        value_a: A's mean over queries.
        value_b: B's mean over queries.
        difference: B - A.
        low: Lower end of the 95 % bootstrap interval of the difference.
        high: Upper end of it.
        p_value: Two-sided, by sign flips.
        think_rate_a: Fraction of queries that A's gate had think.
        think_rate_b: Fraction of queries that B's gate had think.
    """

    pool: str
    column: str
    num_queries: int
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p_value: float
    think_rate_a: float
    think_rate_b: float


@dataclass(frozen=True, eq=False)
class _Pairs:
    """What A and B, in this order, did on the queries of one column, `[2, N]`."""

    values: Tensor
    thinks: Tensor


def check_metric(metric: str, search_depth: int) -> None:
    """Check that a metric can be told from the ranks of first positives.

    Raises:
        ValueError: It cannot.
    """
    name, _, k = metric.partition("@")
    is_recall = name == "recall" and k.isdecimal() and 1 <= int(k) <= search_depth
    if not is_recall and metric not in (HEADLINE, "mrr"):
        allowed = f"{HEADLINE}, mrr, and recall@1 .. recall@{search_depth}, the depth of the search"
        raise ValueError(f"metric is {metric!r}; allowed are {allowed}")


def compare_queries(
    a: PerQuery, b: PerQuery, metric: str, num_resamples: int, seed: int
) -> list[Difference]:
    """Return the differences per pool: each column, then the mean over columns.

    A query asked under several prompts counts once, with its mean over them: they are not
    independent.

    Args:
        a: One run.
        b: The other, over the same queries in any order.
        metric: `headline`, `recall@k` or `mrr`.
        num_resamples: Resamples for the interval, and sign flips for the p-value.
        seed: Seed of both.

    Raises:
        ValueError: The two hold different queries.
    """
    order = _align(a, b)
    columns, ids = np.array(a.columns), np.array(a.query_ids)
    thinks = torch.stack([a.thinks, b.thinks[order]]).double()
    found = []
    for pool in POOLS:
        ranks = torch.stack([a.first_ranks[pool], b.first_ranks[pool][order]])
        pairs = {}
        for column in dict.fromkeys(a.columns):
            places = np.flatnonzero(columns == column)
            _, query = np.unique(ids[places], return_inverse=True)
            values = _score(ranks[:, places], column, metric)
            pairs[column] = _Pairs(
                _average_prompts(values, query), _average_prompts(thinks[:, places], query)
            )
        strata = {**{column: [pair] for column, pair in pairs.items()}, "all": [*pairs.values()]}
        found += [_judge(pool, name, some, num_resamples, seed) for name, some in strata.items()]
    return found


def _judge(
    pool: str, column: str, strata: Sequence[_Pairs], num_resamples: int, seed: int
) -> Difference:
    """Return how B differs from A over one column, or over the mean of several."""
    differences = [pairs.values[1] - pairs.values[0] for pairs in strata]
    values = torch.stack([pairs.values.mean(1) for pairs in strata]).mean(0)
    thinks = torch.stack([pairs.thinks.mean(1) for pairs in strata]).mean(0)
    low, high = bootstrap_interval(differences, num_resamples, seed)
    return Difference(
        pool,
        column,
        num_queries=sum(map(len, differences)),
        value_a=values[0].item(),
        value_b=values[1].item(),
        difference=(values[1] - values[0]).item(),
        low=low,
        high=high,
        p_value=sign_flip_p_value(differences, num_resamples, seed),
        think_rate_a=thinks[0].item(),
        think_rate_b=thinks[1].item(),
    )


def _align(a: PerQuery, b: PerQuery) -> Tensor:
    """Return the place in B of each query of A."""
    keys_a, keys_b = (
        list(zip(q.columns, q.query_ids, q.prompt_numbers.tolist(), strict=True)) for q in (a, b)
    )
    places = {key: place for place, key in enumerate(keys_b)}
    if len(places) < len(keys_b) or len(set(keys_a)) < len(keys_a):
        raise ValueError("a query occurs twice under one column and prompt")
    if lonely := sorted({*keys_a} ^ {*keys_b}):
        column, query_id, _ = lonely[0]
        side = "B" if lonely[0] in places else "A"
        words = "1 query was" if len(lonely) == 1 else f"{len(lonely):,} queries were"
        more = ", ..." if len(lonely) > 1 else ""
        raise ValueError(
            f"{words} evaluated in one run only: {query_id} of {column} in {side}{more}"
        )
    return torch.tensor([places[key] for key in keys_a])


def _score(first_ranks: Tensor, column: str, metric: str) -> Tensor:
    """Return what was scored at each rank, as float64."""
    if metric == "mrr":
        return reciprocal_rank(first_ranks)
    k = headline_k(column) if metric == HEADLINE else int(metric.partition("@")[2])
    return hit_within_k(first_ranks, k).double()


def _average_prompts(values: Tensor, query: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Tensor:
    """Return `[2, N]`, the means over the rows of each query, numbered from 0 by `query`."""
    rows = torch.from_numpy(query)
    sums = values.new_zeros(len(values), int(rows.max()) + 1).index_add_(1, rows, values)
    return sums / rows.bincount()
