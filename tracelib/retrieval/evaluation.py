"""From rankings to result rows: local and union pool, easy and hard queries, each prompt.

Shapes: Q queries, D dimensions, K ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tracelib.metrics.ranking import (
    RaggedIds,
    average_precision_at_k,
    first_positive_rank,
    hit_within_k,
    mark_positives,
    reciprocal_rank,
    set_recall_at_k,
)
from tracelib.retrieval.columns import headline_k
from tracelib.retrieval.runs import ResultRow, mean_over_columns

RECALL_KS = (1, 5, 10, 20, 50)
"""Depths of M-BEIR's any-hit recall, all from one search."""

_HEADLINE_KS = (5, 10)

HEADLINE = "headline"
"""Metric name of a column's any-hit recall at its headline k; its mean is M-BEIR's headline."""

SUBSETS = {"all": None, "easy": 0, "hard": 1}
_PROMPT = "prompt_"


@dataclass(frozen=True, eq=False)
class QueryFacts:
    """What is known of the queries before they are embedded, in one order.

    Args:
        column_names: The columns, in the order of tables.
        column_codes: `[Q]` place of each query's column in `column_names`.
        positives: Places in the union pool of each query's positives; positives outside it are left
            out.
        num_positives: `[Q]` positives of each query, those outside the union pool included.
        difficulty: `[Q]` 1 hard, 0 easy, -1 unknown.
        prompt_numbers: `[Q]` the prompt of each query, from 1, where every query was asked under
            each of its prompts; else 0.

    Raises:
        ValueError: The lengths differ.
    """

    column_names: Sequence[str]
    column_codes: Tensor
    positives: RaggedIds
    num_positives: Tensor
    difficulty: Tensor
    prompt_numbers: Tensor

    def __post_init__(self) -> None:
        lengths = {
            "column_codes": len(self.column_codes),
            "positives": len(self.positives),
            "num_positives": len(self.num_positives),
            "difficulty": len(self.difficulty),
            "prompt_numbers": len(self.prompt_numbers),
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"facts of different numbers of queries: {lengths}")

    def __len__(self) -> int:
        return len(self.column_codes)

    @cached_property
    def columns(self) -> list[str]:
        """The column of each query."""
        return [self.column_names[code] for code in self.column_codes.tolist()]

    @cached_property
    def subsets(self) -> list[str]:
        """`all`, `easy`, `hard`, and `prompt_1` onwards where queries have numbered prompts."""
        numbers = set(self.prompt_numbers.tolist()) - {0}
        return [*SUBSETS, *(f"{_PROMPT}{number}" for number in sorted(numbers))]

    def select(self, column: str, subset: str) -> Tensor:
        """Return the places of a column's queries of a subset, one of `subsets`."""
        is_member = self.column_codes == list(self.column_names).index(column)
        if subset.startswith(_PROMPT):
            is_member &= self.prompt_numbers == int(subset.removeprefix(_PROMPT))
        elif (wanted := SUBSETS[subset]) is not None:
            is_member &= self.difficulty == wanted
        return is_member.nonzero().flatten()


@dataclass(frozen=True)
class Thoughts:
    """How the queries were embedded, in the order of `QueryFacts`.

    Args:
        thinks: `[Q]` whether the gate had the query think.
        think_probability: `[Q]` the router's probability, not calibrated; NaN without a router.
        emb_is_first: `[Q]` whether the embedding token was the likeliest first token.
        rationale_token_ids: What each query wrote before its embedding token.
        is_forced: `[Q]` whether the embedding token had to be appended.
        seconds: Time spent embedding all queries; None when it is not known, as when some of the
            embeddings were read from a store.
    """

    thinks: Tensor
    think_probability: Tensor
    emb_is_first: Tensor
    rationale_token_ids: Sequence[Sequence[int]]
    is_forced: Tensor
    seconds: float | None

    @property
    def num_tokens(self) -> Tensor:
        """`[Q]` tokens written per query, the embedding token included."""
        return torch.tensor([len(ids) + 1.0 for ids in self.rationale_token_ids])


@dataclass(frozen=True)
class Ranking:
    """One search per query, `[Q, K]`, against a pool.

    Args:
        places: Places in the union pool, best first; -1 beyond the end of a pool smaller than K.
        scores: Cosines; -inf beyond the end.
    """

    places: Tensor
    scores: Tensor


def describe_shallow_pools(pools: Mapping[str, Sequence[int]]) -> str:
    """Return a sentence on the pools with fewer candidates than the deepest recall, or ""."""
    depth = max(RECALL_KS)
    shallow = [f"{name} ({len(pool)})" for name, pool in pools.items() if len(pool) < depth]
    names = ", ".join(shallow)
    return f"pools of fewer than {depth} candidates, ranked whole: {names}" if shallow else ""


def tabulate(
    run: str, gate: str, facts: QueryFacts, thoughts: Thoughts, rankings: Mapping[str, Ranking]
) -> list[ResultRow]:
    """Return the result rows of one gate, and their unweighted means over columns, called `all`.

    Per column, pool and subset: any-hit `recall@k`, `headline` (any-hit recall at the column's
    headline k), and beside them, under names that M-BEIR does not use, `recall_set@k`, `map@5` and
    `mrr` (to the depth of the search). Per column and subset: `think_rate`, `tokens_per_query`.
    Subsets by prompt have recall only, and a mean over the columns that have such a prompt. Speed
    is that of all queries together, left out when unknown.
    """
    thinking = {"think_rate": thoughts.thinks, "tokens_per_query": thoughts.num_tokens}
    measured = {pool: score_ranking(facts, ranking) for pool, ranking in rankings.items()}
    rows: list[ResultRow] = []
    for column in facts.column_names:
        headline = f"recall@{headline_k(column)}"
        for subset in facts.subsets:
            members = facts.select(column, subset)
            if not len(members):
                continue
            is_prompt = subset.startswith(_PROMPT)
            for pool, scores in measured.items():
                named = scores | {HEADLINE: scores[headline]}
                if is_prompt:
                    named = {m: v for m, v in named.items() if m.startswith(("recall@", HEADLINE))}
                rows += _average(run, gate, column, pool, subset, named, members)
            if not is_prompt:
                rows += _average(run, gate, column, "local", subset, thinking, members)
    rows += mean_over_columns(rows)
    if thoughts.seconds is not None:
        speed = len(facts) / max(thoughts.seconds, 1e-9)
        rows.append(ResultRow(run, gate, "all", "local", "all", "queries_per_second", speed))
    return rows


def rank_first_positives(facts: QueryFacts, ranking: Ranking) -> Tensor:
    """Return the rank `[Q]` of each query's first positive, from 1; 0 when the list holds none."""
    return first_positive_rank(mark_positives(ranking.places, facts.positives))


def score_ranking(facts: QueryFacts, ranking: Ranking) -> dict[str, Tensor]:
    """Return what each query scored, `[Q]` float64 by metric name."""
    is_positive = mark_positives(ranking.places, facts.positives)
    first_rank = first_positive_rank(is_positive)
    hits = {f"recall@{k}": hit_within_k(first_rank, k).double() for k in RECALL_KS}
    total = facts.num_positives
    return {
        **hits,
        **{f"recall_set@{k}": set_recall_at_k(is_positive, total, k) for k in _HEADLINE_KS},
        "map@5": average_precision_at_k(is_positive, total, 5),
        "mrr": reciprocal_rank(first_rank),
    }


def _average(
    run: str,
    gate: str,
    column: str,
    pool: str,
    subset: str,
    measured: Mapping[str, Tensor],
    members: Tensor,
) -> list[ResultRow]:
    """Return a row per metric: its mean over some queries."""
    return [
        ResultRow(run, gate, column, pool, subset, metric, values[members].double().mean().item())
        for metric, values in measured.items()
    ]
