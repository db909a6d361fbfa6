"""From a store that holds a split whole to its rankings and numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from tracelib.callbacks.embedding_session import EmbeddingSession
from tracelib.data.evaluation_set import EvaluationSet
from tracelib.distributed import get_rank, get_world_size
from tracelib.metrics.ranking import RaggedIds
from tracelib.retrieval.evaluation import (
    RECALL_KS,
    QueryFacts,
    Ranking,
    Thoughts,
    describe_shallow_pools,
    tabulate,
)
from tracelib.retrieval.ranking import Chunks, Search, rank_pools
from tracelib.retrieval.runs import ResultRow
from tracelib.retrieval.search import TopKSearch, estimate_search_bytes

CHUNK_SIZE = 32_768
"""Candidates scored at once unless told otherwise."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a split found.

    Args:
        evaluation_set: Queries, candidates and pools.
        facts: What was known of the queries.
        thoughts: How they were embedded.
        rankings: Under `local` and `union`.
        rows: The numbers.
    """

    evaluation_set: EvaluationSet
    facts: QueryFacts
    thoughts: Thoughts
    rankings: dict[str, Ranking]
    rows: list[ResultRow]


def build_facts(found: EvaluationSet) -> QueryFacts:
    """Return what is known of a split's queries, with positives as places in the union pool."""
    offsets, candidate_ids = (torch.from_numpy(part) for part in found.queries.positives)
    places = torch.from_numpy(found.candidates.find(candidate_ids.numpy()))
    query_of = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    counts = torch.bincount(query_of[places >= 0], minlength=len(offsets) - 1)
    codes = torch.empty(len(offsets) - 1, dtype=torch.long)
    for code, span in enumerate(found.query_spans.values()):
        codes[span.start : span.stop] = code
    return QueryFacts(
        column_names=list(found.query_spans),
        column_codes=codes,
        positives=RaggedIds(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]), places[places >= 0]
        ),
        num_positives=offsets.diff(),
        difficulty=torch.from_numpy(found.queries.difficulty).long(),
        prompt_numbers=torch.from_numpy(found.queries.prompt_numbers).long(),
    )


def rank_session(
    session: EmbeddingSession,
    device: torch.device,
    chunk_size: int,
    build_search: Callable[[Tensor, int], Search],
) -> dict[str, Ranking]:
    """Rank a split that is embedded whole; says first how much memory that takes.

    Raises:
        StoreError: The store lacks embeddings.
    """
    found, depth = session.found, max(RECALL_KS)
    queries = session.read_query_embeddings()
    num_bytes = estimate_search_bytes(len(queries), queries.shape[1], depth, chunk_size)
    num_bytes += (len(queries) + 2 * chunk_size) * queries.shape[1] * queries.element_size()
    rank_zero_info(
        f"search: {len(queries):,} queries in {len(found.candidates):,} candidates of "
        f"{len(found.pools)} pools, at most {num_bytes / 1e9:.2f} GB of memory on each rank"
    )
    if shallow := describe_shallow_pools(found.pools):
        rank_zero_info(shallow)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    progress = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=get_rank() > 0 or not console.is_terminal,
    )
    task = progress.add_task("search", total=len(found.candidates) / get_world_size())

    def track(column: str) -> Chunks:
        for place, rows in session.iterate_candidates(column, chunk_size):
            yield place, rows
            progress.advance(task, len(rows))

    with progress:
        chunks = {column: track(column) for column in found.pools}
        return rank_pools(queries.to(device), found.query_spans, chunks, depth, build_search)


def evaluate_session(
    session: EmbeddingSession,
    run: str,
    gate: str,
    seconds: float | None,
    device: torch.device,
    chunk_size: int = CHUNK_SIZE,
    build_search: Callable[[Tensor, int], Search] = TopKSearch,
) -> Evaluation:
    """Complete a store, rank its queries and return all numbers.

    Args:
        session: A split that every rank has embedded its share of.
        run: Name of the run in the rows.
        gate: Name of the gate in the rows.
        seconds: Time it took to embed the queries; None when not known.
        device: Where to search.
        chunk_size: Candidates scored at once; bounds memory, never changes the result.
        build_search: Makes the search of a pool from queries and depth.

    Raises:
        StoreError: The store lacks embeddings.
        ValueError: All embeddings of a pool point the same way.
    """
    session.finish()
    facts, thoughts = build_facts(session.found), session.read_thoughts(seconds)
    rankings = rank_session(session, device, chunk_size, build_search)
    rows = tabulate(run, gate, facts, thoughts, rankings)
    return Evaluation(session.found, facts, thoughts, rankings, rows)
