"""From records to batches: training pairs, prompts of queries, candidates.

Each dataset takes a list of places and returns a whole batch, so a sampler of lists decides what
shares one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tracelib.data.collator import ChatProcessor, Turn
from tracelib.data.images import ImageError, load_image
from tracelib.data.micro_batches import form_chunks
from tracelib.data.query_table import QueryTable
from tracelib.data.rationale_policy import RationalePolicy, check_rationale_policy
from tracelib.data.records import MAX_CANDIDATE_NUMBER, encode_id
from tracelib.data.tables import CandidateTable
from tracelib.prompts import Messages, Template
from tracelib.types import (
    Candidate,
    CandidateBatch,
    ContrastiveRationale,
    EncoderInput,
    Query,
    QueryBatch,
    Rationale,
    TrainBatch,
)


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
        rationale: Text of the language-modelling loss, before the embedding token: `none`,
            `teacher` (target-blind) or `oracle` (it may have seen the target).
        contrastive_rationale: What embeddings are read after. `annotated` is the same text, which
            must not have seen the target: at test time no oracle exists (RGE's central finding).
            `oracle` takes it although it has, `self` the thought that the model writes itself.
        num_hard_negatives: Hard negatives per query, taken in the listed order.
        route_labels: `[Q]` what the router learns of each query, -1 for nothing; None takes the
            annotated difficulty.
        micro_batch_size: Most sequences that are encoded at once; with it or `micro_batch_tokens`,
            batches ask for cached gradients.
        micro_batch_tokens: Most tokens that are encoded at once, pictures and padding included.
        easy_rationales: `[Q]` whether an easy query keeps its rationale, if it has one; None keeps
            all. One without is trained to be answered at once.

    Raises:
        ValueError: Embeddings would be read after a text that has seen its target, there is no such
            text, or no query has a rationale.
    """

    def __init__(
        self,
        queries: QueryTable,
        pool: CandidateTable,
        renderer: RecordRenderer,
        rationale: RationalePolicy,
        contrastive_rationale: ContrastiveRationale = "annotated",
        num_hard_negatives: int = 0,
        route_labels: NDArray[Any] | None = None,
        micro_batch_size: int | None = None,
        micro_batch_tokens: int | None = None,
        easy_rationales: NDArray[np.bool_] | None = None,
    ) -> None:
        self.queries, self.pool, self.renderer, self.rationale = queries, pool, renderer, rationale
        self.num_hard_negatives = num_hard_negatives
        self.micro_batch_size, self.micro_batch_tokens = micro_batch_size, micro_batch_tokens
        annotated = queries.difficulty.astype(np.int64)
        self.route_labels = annotated if route_labels is None else route_labels
        self._is_silent = np.zeros(len(queries), bool)
        if easy_rationales is not None:
            self._is_silent = (queries.difficulty == 0) & ~easy_rationales
        check_rationale_policy(
            queries.ids, queries.rationale_sources, rationale, contrastive_rationale
        )

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, indices: list[int]) -> TrainBatch:
        rows = self.queries.take(indices)
        names = [q.positive_ids[0] for q in rows]
        names += [i for q in rows for i in q.negative_ids[: self.num_hard_negatives]]
        candidate_ids = np.array([encode_id(name, MAX_CANDIDATE_NUMBER) for name in names])
        candidates = self.pool.take(self.pool.find(candidate_ids))
        query_chunks, query_order = self._encode_chunks(
            [
                self.renderer.render_query(q, self._choose_rationale(q, place))
                for q, place in zip(rows, indices, strict=True)
            ],
            [f"query {q.query_id!r}" for q in rows],
        )
        candidate_chunks, candidate_order = self._encode_chunks(
            [self.renderer.render_candidate(c) for c in candidates],
            [f"candidate {name!r}" for name in names],
        )
        places = np.array(indices)[query_order]
        positive_ids = [
            torch.tensor([encode_id(name, MAX_CANDIDATE_NUMBER) for name in rows[i].positive_ids])
            for i in query_order
        ]
        return TrainBatch(
            query=query_chunks,
            candidate=candidate_chunks,
            task_ids=torch.tensor([rows[i].task_id for i in query_order]),
            query_ids=torch.from_numpy(self.queries.ids[places]),
            # The positive of query i was candidate i; argsort tells where it went.
            targets=torch.from_numpy(np.argsort(candidate_order)[query_order]),
            difficulty=torch.from_numpy(self.route_labels[places]),
            positive_ids=pad_sequence(positive_ids, batch_first=True, padding_value=-1),
            candidate_ids=torch.from_numpy(candidate_ids[candidate_order]),
            is_cached=bool(self.micro_batch_size or self.micro_batch_tokens),
        )

    def _encode_chunks(
        self, turns: list[Turn], names: list[str]
    ) -> tuple[list[EncoderInput], list[int]]:
        """Return chunks of padded sequences, and the place of each of their rows in `turns`."""
        processor = self.renderer.processor
        rows = dict(enumerate(processor.tokenize(turns)))
        lengths = [len(row.ids) for row in rows.values()]
        chunks = form_chunks(lengths, names, self.micro_batch_size, self.micro_batch_tokens)
        # What is in a chunk is let go: a thousand records' patches are not held twice.
        inputs = [processor.pad([rows.pop(i) for i in chunk]) for chunk in chunks]
        return inputs, [i for chunk in chunks for i in chunk]

    def _choose_rationale(self, query: Query, place: int) -> Rationale | None:
        return None if self.rationale == "none" or self._is_silent[place] else query.rationale


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
