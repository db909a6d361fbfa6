"""Embeds a split into a store, whole or what is missing, and reads it back.

Shapes: Q queries, C candidates of the union pool, D dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.distributed import gather_rows, get_rank, get_world_size, wait_for_ranks
from tracelib.models.decoding import EngineOutput
from tracelib.models.gates import Gate
from tracelib.module import RetrievalModule
from tracelib.retrieval.evaluation import Thoughts
from tracelib.retrieval.store import EmbeddingType, Row, build_row_type
from tracelib.retrieval.stored_side import StoredSide
from tracelib.types import CandidateBatch, QueryBatch

EMBEDDING_VERSION = 2
"""Raised whenever the same model and records give other embeddings, so that all are made again."""
_PICTURE_LENGTH = 10_000_000
"""Longer than any text: records with pictures come after those without."""


@dataclass(frozen=True)
class EmbeddingKeys:
    """What embeddings depend on besides the records, as JSON values.

    Args:
        query: For the queries: weights, words, prompts, gate.
        candidate: For the candidates: weights, words.
    """

    query: dict[str, Any]
    candidate: dict[str, Any]


def build_keys(
    module: RetrievalModule,
    data: MBEIRDataModule,
    gate: Gate,
    fingerprint: str,
    precision: str,
) -> EmbeddingKeys:
    """Return the keys of a model's embeddings; pictures are known by path, not by content.

    Args:
        module: The model.
        data: The records' rendering.
        gate: Which queries think.
        fingerprint: Digest of the weights, `RetrievalModule.compute_fingerprint`.
        precision: How they are computed, e.g. `32-true`, or `merged`.
    """
    renderer = data.renderer
    shared: dict[str, Any] = {
        "version": EMBEDDING_VERSION,
        "weights": fingerprint,
        "precision": f"{module.encoder.dtype} {precision}",
        "attention": module.encoder.attention,
        "read_offset": module.encoder.read_offset,
        "emb_token": renderer.emb_token,
        "max_text_tokens": renderer.max_text_tokens,
        "processor": renderer.processor.compute_digest(),
    }
    candidate = {"side": "candidate", **shared}
    candidate["template"] = dataclasses.asdict(renderer.candidate_template)
    query = {"side": "query", **shared, "template": dataclasses.asdict(renderer.query_template)}
    query["gate"] = gate.describe()
    query["max_rationale_tokens"] = module.engine.max_rationale_tokens
    query["prompt_policy"] = data.prompt_policy
    if data.prompt_policy == "random":
        query["seed"] = data.seed
    return EmbeddingKeys(query, candidate)


class EmbeddingSession:
    """The stored queries and candidates of one split, model and gate.

    Args:
        data: Records; the split must be set up.
        split: `val` or `test`.
        store_dir: Folder of all stores. The parts of this one are `queries/<column>-<digest>` and
            `candidates/<column>-<digest>` in it, so that what depends on the same is shared.
        keys: What the embeddings depend on.
        embedding_size: Dimensions of an embedding.
        embedding_type: Type on disk.

    Raises:
        StoreError: The store holds embeddings of something else.
    """

    def __init__(
        self,
        data: MBEIRDataModule,
        split: str,
        store_dir: Path,
        keys: EmbeddingKeys,
        embedding_size: int,
        embedding_type: EmbeddingType = "float32",
    ) -> None:
        found, hashes = data.evaluation_sets[split], data.reader.read_sources(split)
        self.found, self.store_dir = found, store_dir
        self.query_batch_size = data.eval_batch_size * data.eval_window
        self.candidate_batch_size = data.eval_batch_size
        query_sources = {column: list(hashes[column][:2]) for column in found.query_spans}
        pool_sources = {column: hashes[column][2] for column in found.pools}
        self.max_tokens = int(keys.query["max_rationale_tokens"])
        self.queries = StoredSide(
            store_dir / "queries",
            keys.query,
            query_sources,
            found.query_spans,
            found.queries.ids,
            build_row_type(embedding_size, embedding_type, self.max_tokens),
        )
        self.candidates = StoredSide(
            store_dir / "candidates",
            keys.candidate,
            pool_sources,
            found.pools,
            found.candidates.ids,
            build_row_type(embedding_size, embedding_type),
            found.first_places,
        )

    def plan_batches(self) -> tuple[list[list[int]], list[list[int]]]:
        """Return this rank's batches of queries and of candidates that are not stored."""
        found = self.found
        rank, world_size = get_rank(), get_world_size()
        plans = []
        for batch_size, side, records in (
            (self.query_batch_size, self.queries, found.queries),
            (self.candidate_batch_size, self.candidates, found.candidates),
        ):
            lengths = records.lengths + _PICTURE_LENGTH * records.has_image.astype(np.int64)
            open_shards = gather_rows(side.list_open_shards() if rank == 0 else [])
            plans.append(side.plan_batches(lengths, batch_size, open_shards, rank, world_size))
        return plans[0], plans[1]

    def write_queries(self, batch: QueryBatch, output: EngineOutput) -> bool:
        """Commit a batch of queries; return whether it was this rank's to embed."""
        token_ids = np.zeros((len(output.rationale_token_ids), self.max_tokens), dtype=np.int32)
        for row, ids in zip(token_ids, output.rationale_token_ids, strict=True):
            row[: len(ids)] = ids
        values = {
            "embedding": output.embeddings.float().cpu().numpy(),
            "thinks": output.thinks.cpu().numpy(),
            "think_probability": output.think_probability.float().cpu().numpy(),
            "emb_is_first": output.emb_is_first.cpu().numpy(),
            "is_forced": output.is_forced.cpu().numpy(),
            "num_tokens": np.array([len(ids) for ids in output.rationale_token_ids]),
            "token_ids": token_ids,
        }
        return self.queries.write(batch.indices.tolist(), values)

    def write_candidates(self, batch: CandidateBatch, embeddings: Tensor) -> bool:
        """Commit a batch of candidates; return whether it was this rank's to embed."""
        values = {"embedding": embeddings.float().cpu().numpy()}
        return self.candidates.write(batch.indices.tolist(), values)

    def finish(self) -> None:
        """Wait for all ranks and complete what needs no model."""
        self.queries.flush()
        self.candidates.flush()
        wait_for_ranks()
        self.queries.fill_repeats()
        self.candidates.fill_repeats()
        wait_for_ranks()

    def read_query_embeddings(self) -> Tensor:
        """Return `[Q, D]` stored unit vectors."""
        return torch.from_numpy(self.queries.read("embedding"))

    def iterate_candidates(self, column: str, chunk_size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield this rank's share of a pool: first place in the union pool, and embeddings."""
        rank, world_size = get_rank(), get_world_size()
        for place, rows in self.candidates.iterate_chunks(column, chunk_size, rank, world_size):
            yield place, torch.from_numpy(rows)

    def read_thoughts(self, seconds: float | None) -> Thoughts:
        """Return how the queries were embedded.

        Args:
            seconds: Time it took, or None when unknown.
        """
        read = self.queries.read
        token_ids: Row = read("token_ids")
        return Thoughts(
            thinks=torch.from_numpy(read("thinks")),
            think_probability=torch.from_numpy(read("think_probability")),
            emb_is_first=torch.from_numpy(read("emb_is_first")),
            rationale_token_ids=[
                ids[:n].tolist() for ids, n in zip(token_ids, read("num_tokens"), strict=True)
            ],
            is_forced=torch.from_numpy(read("is_forced")),
            seconds=seconds,
        )
