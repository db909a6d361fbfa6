"""Embeds each query of a split directly and after its own thoughts, in one pass over the split.

Shapes: B queries of a batch, Q of the split, S thoughts of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from tracelib.callbacks.embedding_session import EmbeddingSession, build_keys
from tracelib.callbacks.gate_embedding import drop_thoughts
from tracelib.callbacks.stored_evaluation import CHUNK_SIZE, build_facts
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.metrics.ranking import RaggedIds
from tracelib.metrics.utility import Standing
from tracelib.models.decoding import EngineOutput
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.models.sampling import Sampling
from tracelib.module import RetrievalModule
from tracelib.retrieval.positive_ranks import find_standing
from tracelib.types import QueryBatch


class ThoughtSessions:
    """The stores of a split's direct embeddings and of those with each thought.

    Without sampling, those of the val split are the ones that `evaluate` fills under the gates
    never and always. Candidates have one store.

    Args:
        module: The model, its adapter merged.
        data: Records; the split must be set up.
        split: `train`, which is a share of the training queries, or `val`.
        store_dir: Folder of all stores.
        fingerprint: Digest of the weights before merging.
        sampling: How thoughts are drawn, and how many for each query.
        share: Share of the training queries, by default those that the fit held out.

    Raises:
        StoreError: A store holds embeddings of something else.
    """

    def __init__(
        self,
        module: RetrievalModule,
        data: MBEIRDataModule,
        split: str,
        store_dir: Path,
        fingerprint: str,
        sampling: Sampling,
        share: float | None = None,
    ) -> None:
        self.module, self.data, self.split, self.sampling = module, data, split, sampling
        self.found = data.evaluation_sets[split]
        self.prompt_policy = "random" if split == "train" else data.prompt_policy
        chosen: dict[str, Any] = {"prompt_policy": self.prompt_policy}
        if split == "train":
            held_out = data.held_out if share is None else share
            chosen |= {"held_out": held_out, "train_file": data.train_file}
        if self.prompt_policy == "random":
            chosen["seed"] = data.seed

        def open_session(sample: int) -> EmbeddingSession:
            gate = AlwaysGate() if sample else NeverGate()
            keys = build_keys(module, data, gate, fingerprint, "merged")
            query = keys.query | chosen
            if sample and sampling.temperature:
                query |= {"temperature": sampling.temperature, "draw": [sampling.seed, sample]}
            keys = dataclasses.replace(keys, query=query)
            return EmbeddingSession(data, split, store_dir, keys, module.encoder.hidden_size)

        self.direct, *self.thoughts = map(open_session, range(1 + sampling.num_samples))

    @torch.no_grad()
    def embed(self, progress: Progress) -> None:
        """Store what is missing."""
        sessions = [self.direct, *self.thoughts]
        plans = [session.plan_batches() for session in sessions]
        # A plan has a batch even where nothing is missing.
        pending = {
            tuple(batch)
            for session, (queries, _) in zip(sessions, plans, strict=True)
            if session.queries.list_open_shards()
            for batch in queries
        }
        candidates = plans[0][1] if self.direct.candidates.list_open_shards() else []
        query_loader, candidate_loader = self.data.build_evaluation_loaders(
            self.split, [list(batch) for batch in sorted(pending)], candidates
        )
        for batch in progress.track(candidate_loader, description="candidates"):
            batch.inputs = batch.inputs.to(self.module.device)
            self.direct.write_candidates(batch, self.module.embed_candidates(batch))
        for batch in progress.track(query_loader, description="queries"):
            outputs = think(self.module, batch, self.sampling)
            for session, output in zip(sessions, outputs, strict=True):
                session.write_queries(batch, output)
        for session in sessions:
            session.finish()

    def find_standings(self, progress: Progress) -> tuple[Standing, Standing]:
        """Return ranks and margins in the queries' own pools, `[Q]` directly and `[S, Q]`.

        Raises:
            StoreError: A store lacks embeddings.
        """
        num_passes = 2 * (1 + len(self.thoughts))
        task = progress.add_task("ranks", total=num_passes * len(self.found.candidates))
        positives = build_facts(self.found).positives

        def iterate_chunks(column: str) -> Iterator[tuple[int, Tensor]]:
            for place, rows in self.direct.iterate_candidates(column, CHUNK_SIZE):
                yield place, rows
                progress.advance(task, len(rows))

        def iterate_columns(session: EmbeddingSession) -> Iterator[Standing]:
            queries = session.read_query_embeddings()
            for column, span in self.found.query_spans.items():
                bounds = positives.offsets[span.start : span.stop + 1]
                own = RaggedIds(bounds - bounds[0], positives.ids[bounds[0] : bounds[-1]])
                rows = queries[span.start : span.stop].to(self.module.device)
                yield find_standing(rows, own, partial(iterate_chunks, column))

        direct = _join(torch.cat, iterate_columns(self.direct))
        thoughts = (_join(torch.cat, iterate_columns(session)) for session in self.thoughts)
        return direct, _join(torch.stack, thoughts)


def think(module: RetrievalModule, batch: QueryBatch, sampling: Sampling) -> list[EngineOutput]:
    """Return what becomes of a batch without a thought, and with each of its samples.

    Args:
        module: The model.
        batch: B queries.
        sampling: How thoughts are drawn.

    Returns:
        1 + S outputs of B queries: as under the gate never, and as under always.
    """
    prior = module.get_task_prior(batch.task_ids.to(module.device))
    output = module.engine.embed_queries(
        batch.inputs, AlwaysGate(), prior, batch.query_ids, sampling
    )
    # The samples of a query come one after the other.
    samples = [
        EngineOutput(**{k: v[first :: sampling.num_samples] for k, v in vars(output).items()})
        for first in range(sampling.num_samples)
    ]
    if module.encoder.read_offset != -1:  # a direct query has its embedding token to read
        return [module.embed_queries(batch, NeverGate()), *samples]
    return [drop_thoughts(samples[0]), *samples]


def _join(join: Any, parts: Iterable[Standing]) -> Standing:
    """Return the parts' ranks and margins joined by `torch.cat` or `torch.stack`."""
    ranks, margins = zip(*((part.rank, part.margin) for part in parts), strict=True)
    return Standing(join(ranks), join(margins))
