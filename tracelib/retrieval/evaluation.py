"""From embeddings to rankings and result rows: local and union pools, easy and hard queries.

Shapes: Q queries, C candidates of the union pool, D dimensions, K ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracelib.metrics.recall import hit_at_k
from tracelib.retrieval.runs import ResultRow, mean_over_columns
from tracelib.retrieval.search import search_top_k

RECALL_KS = (1, 5, 10, 20, 50)
"""Depths of M-BEIR's any-hit recall, all from one search."""

SUBSETS = {"all": None, "easy": 0, "hard": 1}


@dataclass(frozen=True)
class QueryFacts:
    """What is known of the queries before they are embedded, in one order.

    Args:
        columns: Column of each query.
        positives: Places in the union pool of each query's positives; positives outside it are left
            out.
        difficulty: `[Q]` 1 hard, 0 easy, -1 unknown.
    """

    columns: Sequence[str]
    positives: Sequence[Sequence[int]]
    difficulty: Tensor

    def select(self, column: str, subset: str) -> Tensor:
        """Return the places of a column's queries of a subset (`all`, `easy`, `hard`)."""
        in_column = torch.tensor([c == column for c in self.columns])
        wanted = SUBSETS[subset]
        return (
            (in_column if wanted is None else in_column & (self.difficulty == wanted))
            .nonzero()
            .flatten()
        )


@dataclass(frozen=True)
class Thoughts:
    """How the queries were embedded, in the order of `QueryFacts`.

    Args:
        embeddings: `[Q, D]`.
        thinks: `[Q]` whether the gate had the query think.
        think_probability: `[Q]` the router's probability, NaN without a router.
        rationale_token_ids: What each query wrote before its embedding token.
        is_forced: `[Q]` whether the embedding token had to be appended.
        seconds: Time spent embedding all queries.
    """

    embeddings: Tensor
    thinks: Tensor
    think_probability: Tensor
    rationale_token_ids: Sequence[Sequence[int]]
    is_forced: Tensor
    seconds: float

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


def rank_pools(
    queries: Tensor, candidates: Tensor, facts: QueryFacts, pools: Mapping[str, Sequence[int]]
) -> dict[str, Ranking]:
    """Rank every query in its column's local pool and in the union pool, to depth `max(RECALL_KS)`.

    A pool smaller than that is ranked whole.

    Args:
        queries: `[Q, D]` embeddings.
        candidates: `[C, D]` embeddings of the union pool.
        facts: The queries' columns.
        pools: Places of each column's local pool in the union pool.

    Returns:
        Rankings under `local` and `union`.
    """
    depth = max(RECALL_KS)
    places = torch.full((len(queries), depth), -1)
    scores = torch.full((len(queries), depth), -torch.inf)
    for column, pool in pools.items():
        rows, members = facts.select(column, "all"), torch.tensor(pool)
        if len(rows):
            found, order = search_top_k(
                queries[rows], candidates[members], min(depth, len(members))
            )
            places[rows, : order.shape[1]] = members[order].cpu()
            scores[rows, : order.shape[1]] = found.cpu()
    union_scores, union_places = search_top_k(queries, candidates, min(depth, len(candidates)))
    return {
        "local": Ranking(places, scores),
        "union": Ranking(union_places.cpu(), union_scores.cpu()),
    }


def describe_shallow_pools(pools: Mapping[str, Sequence[int]]) -> str:
    """Return a sentence on the pools with fewer candidates than the deepest recall, or ""."""
    depth = max(RECALL_KS)
    shallow = [f"{name} ({len(pool)})" for name, pool in pools.items() if len(pool) < depth]
    names = ", ".join(shallow)
    return f"pools of fewer than {depth} candidates, ranked whole: {names}" if shallow else ""


def tabulate(
    run: str, gate: str, facts: QueryFacts, thoughts: Thoughts, rankings: Mapping[str, Ranking]
) -> list[ResultRow]:
    """Return the result rows of one gate: recall, think rate, tokens, speed, and their means.

    The mean over columns is unweighted and called `all`. Speed is that of all queries together.
    """
    rows: list[ResultRow] = []
    for column in dict.fromkeys(facts.columns):
        for subset in SUBSETS:
            members = facts.select(column, subset)
            if not len(members):
                continue
            positives = [facts.positives[i] for i in members.tolist()]
            for pool, ranking in rankings.items():
                for k in RECALL_KS:
                    value = hit_at_k(ranking.places[members], positives, k).mean().item()
                    rows.append(ResultRow(run, gate, column, pool, subset, f"recall@{k}", value))
            for metric, values in (
                ("think_rate", thoughts.thinks),
                ("tokens_per_query", thoughts.num_tokens),
            ):
                rows.append(
                    ResultRow(
                        run,
                        gate,
                        column,
                        "local",
                        subset,
                        metric,
                        values[members].float().mean().item(),
                    )
                )
    rows += mean_over_columns(rows)
    speed = len(facts.columns) / max(thoughts.seconds, 1e-9)
    rows.append(ResultRow(run, gate, "all", "local", "all", "queries_per_second", speed))
    return rows
