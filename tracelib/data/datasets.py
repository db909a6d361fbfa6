"""From records to batches: training pairs, prompts of queries, candidates.

Each dataset takes a list of places and returns a whole batch, so a sampler of lists decides what
shares one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tracelib.data.collator import ChatProcessor, Turn
from tracelib.data.images import ImageError, load_image
from tracelib.data.query_table import QueryTable
from tracelib.data.rationales import SOURCES
from tracelib.data.records import MAX_CANDIDATE_NUMBER, MAX_QUERY_NUMBER, decode_id, encode_id
from tracelib.data.tables import CandidateTable
from tracelib.prompts import Messages, Template
from tracelib.types import (
    Candidate,
    CandidateBatch,
    EncoderInput,
    Query,
    QueryBatch,
    Rationale,
    TrainBatch,
)

RationalePolicy = Literal["none", "teacher", "oracle"]


@dataclass(frozen=True)
class RecordRenderer:
    """Turns records into sequences: templates, pictures, tokenization.

    Args:
        root: Data root, which image paths are relative to and may not leave.
        processor: Tokenizer and image processor.
        query_template: Words of the query side.
        candidate_template: Words of the candidate side.
        emb_token: Token that ends every sequence but a prompt.
        max_text_tokens: Longest text of a record; the rest is cut before templating, so the
            embedding token survives.
    """

    root: Path
    processor: ChatProcessor
    query_template: Template
    candidate_template: Template
    emb_token: str
    max_text_tokens: int

    def render_query(self, query: Query, rationale: Rationale | None) -> Turn:
        """Return the training sequence of a query: prompt, rationale if any, embedding token."""
        response = f"{rationale.text}" if rationale else ""
        return self._render(query, self._build_query_messages(query), response)

    def render_prompt(self, query: Query) -> Turn:
        """Return a query up to the generation prompt."""
        return self._render(query, self._build_query_messages(query), None)

    def render_candidate(self, candidate: Candidate) -> Turn:
        """Return a candidate and its embedding token; candidates never reason."""
        text = self.processor.truncate(candidate.text, self.max_text_tokens)
        messages = self.candidate_template.build_messages(
            int(candidate.image_path is not None), "", text, -1
        )
        return self._render(candidate, messages, "")

    def _build_query_messages(self, query: Query) -> Messages:
        text = self.processor.truncate(query.text, self.max_text_tokens)
        return self.query_template.build_messages(
            int(query.image_path is not None), query.instruction, text, query.task_id
        )

    def _render(self, record: Query | Candidate, messages: Messages, response: str | None) -> Turn:
        try:
            images = [load_image(self.root, record.image_path)] if record.image_path else []
        except ImageError as error:
            name = (
                f"query {record.query_id!r}"
                if isinstance(record, Query)
                else f"candidate {record.candidate_id!r}"
            )
            raise ImageError(f"{error} (the picture of {name})") from error
        return Turn(messages, images, response, "" if response is None else self.emb_token)


class TrainDataset(Dataset[TrainBatch]):
    """Queries with one positive each.

    Args:
        queries: Training queries.
        pool: Train pool, which holds all positives and the hard negatives used.
        renderer: Turns records into sequences.
        rationale: `none` trains direct encoding. `teacher` writes the target-blind rationales of
            hard queries before the embedding token. `oracle` also admits rationales that have seen
            the target, as contrastive context too: at test time no oracle exists (RGE's central
            finding), so it has to be asked for.
        num_hard_negatives: Hard negatives per query, taken in the listed order.
        num_length_chunks: Parts of similar length the query side is encoded in; changes speed, not
            the loss.
        route_labels: `[Q]` what the router learns of each query, -1 for nothing; None takes the
            annotated difficulty.

    Raises:
        ValueError: `teacher` is asked for and a rationale has seen its target, or no query has a
            rationale.
    """

    def __init__(
        self,
        queries: QueryTable,
        pool: CandidateTable,
        renderer: RecordRenderer,
        rationale: RationalePolicy,
        num_hard_negatives: int = 0,
        num_length_chunks: int = 2,
        route_labels: NDArray[Any] | None = None,
    ) -> None:
        self.queries, self.pool, self.renderer, self.rationale = queries, pool, renderer, rationale
        self.num_hard_negatives, self.num_length_chunks = num_hard_negatives, num_length_chunks
        annotated = queries.difficulty.astype(np.int64)
        self.route_labels = annotated if route_labels is None else route_labels
        leaks = np.flatnonzero(queries.rationale_sources == SOURCES.index("oracle"))
        if rationale == "teacher" and len(leaks):
            first = decode_id(int(queries.ids[leaks[0]]), MAX_QUERY_NUMBER)
            raise ValueError(
                f"{len(leaks)} rationales have seen their target, first that of query {first}: "
                "set data.rationale to 'oracle' to use them as contrastive context all the same"
            )
        if rationale != "none" and (queries.rationale_sources < 0).all():
            raise ValueError(
                f"data.rationale is {rationale!r} but no training query has a rationale"
            )

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, indices: list[int]) -> TrainBatch:
        taken = sorted(
            zip(self.queries.take(indices), indices, strict=True),
            key=lambda pair: self._estimate_length(pair[0]),
        )
        rows = [query for query, _ in taken]
        turns = [self.renderer.render_query(q, self._choose_rationale(q)) for q in rows]
        names = [q.positive_ids[0] for q in rows]
        names += [i for q in rows for i in q.negative_ids[: self.num_hard_negatives]]
        candidate_ids = np.array([encode_id(name, MAX_CANDIDATE_NUMBER) for name in names])
        candidates = self.pool.take(self.pool.find(candidate_ids))
        processor = self.renderer.processor
        size = -(-len(rows) // self.num_length_chunks)
        width = max(len(q.positive_ids) for q in rows)
        return TrainBatch(
            query=[processor(turns[i : i + size]) for i in range(0, len(turns), size)],
            candidate=processor([self.renderer.render_candidate(c) for c in candidates]),
            task_ids=torch.tensor([q.task_id for q in rows]),
            difficulty=torch.from_numpy(self.route_labels[[place for _, place in taken]]),
            positive_ids=torch.tensor(
                [
                    [encode_id(name, MAX_CANDIDATE_NUMBER) for name in q.positive_ids]
                    + [-1] * (width - len(q.positive_ids))
                    for q in rows
                ]
            ),
            candidate_ids=torch.from_numpy(candidate_ids),
        )

    def _choose_rationale(self, query: Query) -> Rationale | None:
        return None if self.rationale == "none" else query.rationale

    def _estimate_length(self, query: Query) -> tuple[int, str]:
        rationale = self._choose_rationale(query)
        return len(query.text) + (len(rationale.text) if rationale else 0), query.query_id


class QueryDataset(Dataset[QueryBatch]):
    """Prompts of an evaluation set's queries.

    Args:
        queries: The queries.
        renderer: Turns them into prompts.
        part_size: Most prompts that are read at once.
    """

    def __init__(self, queries: QueryTable, renderer: RecordRenderer, part_size: int) -> None:
        self.queries, self.renderer, self.part_size = queries, renderer, part_size

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, indices: list[int]) -> QueryBatch:
        rows = self.queries.take(indices)
        return QueryBatch(
            render_prompts(rows, self.renderer, self.part_size),
            torch.tensor([q.task_id for q in rows]),
            torch.from_numpy(self.queries.ids[indices]),
            torch.tensor(indices),
        )


def render_prompts(
    queries: Sequence[Query], renderer: RecordRenderer, part_size: int
) -> list[EncoderInput]:
    """Return left-padded prompts of queries, in parts of one size, which is at most `part_size`."""
    turns = [renderer.render_prompt(query) for query in queries]
    parts = np.array_split(np.arange(len(turns)), -(-len(turns) // part_size))
    return [renderer.processor([turns[i] for i in part], "left") for part in parts]


class CandidateDataset(Dataset[CandidateBatch]):
    """An evaluation set's candidates."""

    def __init__(self, candidates: CandidateTable, renderer: RecordRenderer) -> None:
        self.candidates, self.renderer = candidates, renderer

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, indices: list[int]) -> CandidateBatch:
        turns = [self.renderer.render_candidate(c) for c in self.candidates.take(indices)]
        return CandidateBatch(self.renderer.processor(turns), torch.tensor(indices))
