"""Embeds the candidates and queries of one MMEB subset with a fitted run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader

from tracelib.data.datasets import RecordRenderer, render_prompts
from tracelib.data.mmeb.reader import MMEBSubset
from tracelib.data.workers import follow_parent, get_worker_context
from tracelib.models.gates import Gate
from tracelib.module import RetrievalModule
from tracelib.types import Candidate, CandidateBatch, Query, QueryBatch

_WINDOW = 8  # batches of queries whose thoughts are written together


@dataclass(frozen=True)
class MMEBEncoder:
    """A fitted run, ready to embed MMEB's records.

    Args:
        module: The model, on its device.
        renderer: Turns records into sequences; its root is that of the pictures.
        gate: Decides which queries think.
        batch_size: Records embedded at once.
        num_workers: Processes that load pictures.
    """

    module: RetrievalModule
    renderer: RecordRenderer
    gate: Gate
    batch_size: int
    num_workers: int

    @torch.no_grad()
    def embed(self, subset: MMEBSubset, progress: Progress) -> EmbeddedSubset:
        """Embed a subset, each side in batches of similar length."""
        size = self.module.encoder.hidden_size
        num_queries, num_candidates = len(subset.queries), len(subset.candidates)
        embedded = EmbeddedSubset(
            torch.empty(num_queries, size),
            torch.empty(num_candidates, size),
            torch.zeros(num_queries, dtype=torch.bool),
            torch.zeros(num_queries, dtype=torch.bool),
            [[] for _ in subset.queries],
        )
        self._embed_candidates(subset, embedded, progress)
        self._embed_queries(subset, embedded, progress)
        return embedded

    def _embed_candidates(
        self, subset: MMEBSubset, embedded: EmbeddedSubset, progress: Progress
    ) -> None:
        loader = self._build_loader(subset.candidates, self.batch_size, _collate_candidates)
        task = progress.add_task(f"{subset.name}: candidates", total=len(loader))
        for batch in loader:
            batch.inputs = batch.inputs.to(self.module.device)
            embedded.candidates[batch.indices] = self.module.embed_candidates(batch).cpu()
            progress.advance(task)
        progress.remove_task(task)

    def _embed_queries(
        self, subset: MMEBSubset, embedded: EmbeddedSubset, progress: Progress
    ) -> None:
        collate = partial(_collate_queries, part_size=self.batch_size)
        loader = self._build_loader(subset.queries, _WINDOW * self.batch_size, collate)
        task = progress.add_task(f"{subset.name}: queries", total=len(loader))
        for batch in loader:
            output = self.module.embed_queries(batch, self.gate)
            embedded.queries[batch.indices] = output.embeddings
            embedded.thinks[batch.indices] = output.thinks
            embedded.is_forced[batch.indices] = output.is_forced
            for place, ids in zip(batch.indices.tolist(), output.rationale_token_ids, strict=True):
                embedded.rationale_token_ids[place] = ids
            progress.advance(task)
        progress.remove_task(task)

    def _build_loader(
        self,
        records: Sequence[Query] | Sequence[Candidate],
        batch_size: int,
        collate: Callable[[Any, RecordRenderer, list[int]], Any],
    ) -> DataLoader[Any]:
        lengths = [(record.image_path is not None, len(record.text)) for record in records]
        order = sorted(range(len(records)), key=lambda i: (lengths[i], i))
        edges = [*range(0, len(order), batch_size), len(order)]
        return DataLoader(
            range(len(records)),  # type: ignore[arg-type]
            batch_sampler=[order[start:stop] for start, stop in pairwise(edges)],
            collate_fn=partial(collate, records, self.renderer),
            num_workers=self.num_workers,
            multiprocessing_context=get_worker_context(self.num_workers),
            worker_init_fn=follow_parent,
        )


@dataclass(frozen=True, eq=False)
class EmbeddedSubset:
    """A subset's embeddings, and how each query came to its own. Q queries, C candidates.

    Args:
        queries: `[Q, D]`, not normalised.
        candidates: `[C, D]`, not normalised.
        thinks: `[Q]` whether the gate had the query think.
        is_forced: `[Q]` whether the embedding token had to be appended.
        rationale_token_ids: What each query wrote before its embedding token.
    """

    queries: Tensor
    candidates: Tensor
    thinks: Tensor
    is_forced: Tensor
    rationale_token_ids: list[list[int]]


def _collate_candidates(
    candidates: Sequence[Candidate], renderer: RecordRenderer, places: list[int]
) -> CandidateBatch:
    turns = [renderer.render_candidate(candidates[i]) for i in places]
    return CandidateBatch(renderer.processor(turns), torch.tensor(places))


def _collate_queries(
    queries: Sequence[Query], renderer: RecordRenderer, places: list[int], part_size: int
) -> QueryBatch:
    rows = [queries[i] for i in places]
    return QueryBatch(
        render_prompts(rows, renderer, part_size),
        torch.tensor([query.task_id for query in rows]),
        torch.tensor(places),
        torch.tensor(places),
    )
