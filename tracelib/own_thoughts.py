"""The model's own thoughts as what training embeddings are read after, on every rank (RGE).

The language-modelling loss keeps the annotated text. The thoughts carry no gradient and enter no
language-modelling loss.

Shapes: B queries of this rank.
"""

from __future__ import annotations

import dataclasses

import torch

from tracelib.distributed import gather_tensor
from tracelib.models.branches import add_thought_branch
from tracelib.models.encoder import Encoder
from tracelib.models.engine import ReasoningEngine
from tracelib.models.rollout import Rollout, RolloutStore, write_thoughts
from tracelib.models.sampling import Sampling
from tracelib.types import TrainBatch


class OwnThoughts:
    """Has the model write what the embeddings of a batch are read after.

    Args:
        encoder: The model.
        rollout: How it writes.
        decode_batch_size: Most queries that think at the same time.
    """

    def __init__(self, encoder: Encoder, rollout: Rollout, decode_batch_size: int) -> None:
        self.encoder, self.rollout = encoder, rollout
        self.engine = ReasoningEngine(encoder, None, rollout.max_tokens, decode_batch_size)
        self.store = RolloutStore(rollout.refresh_steps)

    def add_to(self, batch: TrainBatch, step: int, seed: int = 0) -> TrainBatch:
        """Return the batch whose queries have a second text, the model's own, after their prompt.

        Args:
            batch: Queries and candidates of this rank; `B` may differ by rank.
            step: Number of the step, by which thoughts are dated.
            seed: By which they are drawn, the same on every rank.
        """
        # The pictures are read for the thoughts first, and again for the losses.
        chunks = [dataclasses.replace(chunk, vision_outputs={}) for chunk in batch.query]
        is_stale = ~self.store.find_fresh(batch.query_ids, step)
        written = write_thoughts(
            self.engine,
            chunks,
            batch.query_ids,
            is_stale,
            Sampling(self.rollout.temperature, seed=seed),
        )
        # Every rank keeps the thoughts of all: next time, another may have the query.
        device = self.encoder.device
        ids = gather_tensor(batch.query_ids[is_stale].to(device))
        self.store.put(ids, gather_tensor(written.to(device)), step)
        thoughts = torch.split(
            self.store.read(batch.query_ids), [len(chunk.input_ids) for chunk in chunks]
        )
        emb_token_id = self.encoder.emb_token_id
        return dataclasses.replace(
            batch,
            query=[
                add_thought_branch(chunk, rows, emb_token_id)
                for chunk, rows in zip(chunks, thoughts, strict=True)
            ],
        )
