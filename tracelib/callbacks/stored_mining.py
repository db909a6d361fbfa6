"""From a store that holds the train split whole to hard negatives of its queries.

Queries are searched in blocks, and the pool streams by once for each: neither needs to fit in
memory, whatever the embedding's size.

Shapes: Q queries, C candidates, N places asked for, D dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tracelib.callbacks.embedding_session import EmbeddingSession, build_keys
from tracelib.callbacks.stored_evaluation import CHUNK_SIZE
from tracelib.data.arrow import gather_slices
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.evaluation_set import EvaluationSet
from tracelib.data.formats import MODALITIES
from tracelib.data.records import MAX_CANDIDATE_NUMBER, MAX_QUERY_NUMBER, TASK_MODALITIES
from tracelib.data.tables import Ints
from tracelib.metrics.ranking import RaggedIds
from tracelib.models.gates import Gate
from tracelib.module import RetrievalModule
from tracelib.retrieval.hard_negatives import HardNegatives, MiningRule, find_hard_negatives
from tracelib.retrieval.store import SHARD_ROWS, StoredPart

MiningPool = Literal["local", "union"]
SPLIT = "train"
PROMPT_POLICY = "random"
"""How training chooses prompts: one for each query, drawn by the seed."""
QUERY_BLOCK = 65_536
"""Queries searched at once unless told otherwise."""


def open_training_session(
    module: RetrievalModule, data: MBEIRDataModule, gate: Gate, store_dir: Path, fingerprint: str
) -> EmbeddingSession:
    """Return the stored embeddings of all training queries, and of their pool.

    Args:
        module: The model, its adapter merged.
        data: Records, after `set_up_training_queries`.
        gate: Which queries think.
        store_dir: Folder of all stores.
        fingerprint: Digest of the weights before merging.

    Raises:
        StoreError: The store holds embeddings of something else.
    """
    keys = build_keys(module, data, gate, fingerprint, "merged")
    chosen = {"prompt_policy": PROMPT_POLICY, "seed": data.seed, "train_file": data.train_file}
    keys = dataclasses.replace(keys, query=keys.query | chosen | {"held_out": 1.0})
    return EmbeddingSession(data, SPLIT, store_dir, keys, module.encoder.hidden_size)


def group_by_pool(found: EvaluationSet, pool: MiningPool) -> list[tuple[Ints, Ints]]:
    """Return places of queries with those of the candidates that they are ranked in.

    Args:
        found: The train split.
        pool: `local` has the candidates of the queries' data set and target modality, as M-BEIR's
            local pools do; `union` has all.
    """
    if pool == "union":
        return [(np.arange(len(found.queries)), np.arange(len(found.candidates)))]
    targets = np.zeros(1 + max(TASK_MODALITIES), dtype=np.int64)
    for task_id, (_, modality) in TASK_MODALITIES.items():
        targets[task_id] = MODALITIES.index(modality)
    num_kinds = len(MODALITIES)
    wanted = found.queries.ids // MAX_QUERY_NUMBER * num_kinds + targets[found.queries.task_ids]
    given = found.candidates.ids // MAX_CANDIDATE_NUMBER * num_kinds + found.candidates.modalities
    kinds = np.unique(wanted).tolist()
    return [(np.flatnonzero(wanted == kind), np.flatnonzero(given == kind)) for kind in kinds]


def mine_session(
    session: EmbeddingSession,
    pool: MiningPool,
    rule: MiningRule,
    device: torch.device,
    report_progress: Callable[[float], None],
    query_block: int = QUERY_BLOCK,
    chunk_size: int = CHUNK_SIZE,
) -> HardNegatives:
    """Return the hard negatives of all queries, with places in the train pool.

    Args:
        session: The train split, embedded whole.
        pool: Which candidates a query is ranked in.
        rule: What to take.
        device: Where to search.
        report_progress: Called now and then with the share that is done, 0 .. 1.
        query_block: Queries searched at once; bounds memory, never changes the result.
        chunk_size: Candidates read at once, likewise.

    Raises:
        StoreError: The store lacks embeddings.
        ValueError: All embeddings of a pool point the same way.
    """
    found = session.found
    (queries,), (candidates,) = session.queries.parts.values(), session.candidates.parts.values()
    groups = group_by_pool(found, pool)
    num_steps = sum(-(-len(ours) // query_block) * len(theirs) for ours, theirs in groups)
    num_done = 0

    def iterate_chunks(places: Ints) -> Iterator[tuple[int, Tensor]]:
        nonlocal num_done
        for start in range(0, len(places), chunk_size):
            chunk = places[start : start + chunk_size]
            yield start, read_embeddings(candidates, chunk)
            num_done += len(chunk)
            report_progress(num_done / num_steps)

    offsets, positive_ids = found.queries.positives
    positives = found.first_places[found.candidates.find(positive_ids)]
    mined = HardNegatives.allocate(len(found.queries), rule.num_negatives)
    for ours, theirs in groups:
        contents = torch.from_numpy(found.first_places[theirs])
        for start in range(0, len(ours), query_block):
            block = ours[start : start + query_block]
            starts, stops = offsets[block], offsets[block + 1]
            own = RaggedIds(
                torch.from_numpy(np.cumsum(np.append(0, stops - starts))),
                torch.from_numpy(gather_slices(positives, starts, stops)),
            )
            rows = read_embeddings(queries, block).to(device)
            part = find_hard_negatives(rows, iterate_chunks(theirs), contents, own, rule)
            mined.fill(torch.from_numpy(block), part, torch.from_numpy(theirs))
    return mined


def read_embeddings(part: StoredPart, places: Ints) -> Tensor:
    """Return the embeddings `[N, D]` at some places, in rising order.

    Raises:
        StoreError: A shard is missing.
    """
    blocks = [np.empty((0, *part.row_type["embedding"].shape), part.row_type["embedding"].base)]
    for first, rows in part.iterate_shards(np.unique(places // SHARD_ROWS).tolist()):
        start, stop = np.searchsorted(places, [first, first + SHARD_ROWS])
        blocks.append(rows["embedding"][places[start:stop] - first])
    return torch.from_numpy(np.concatenate(blocks))
