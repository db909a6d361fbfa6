"""Gate-first inference: one prefill answers every easy query, and only the thinking ones decode.

The state that predicts the first token is at once the direct embedding, the implicit gate and the
router's input, so the gate costs nothing. Thinking rows of all parts of a batch share one decode
batch: a row leaves with its embedding token and one that waits takes its slot, so that no row waits
for the slowest.

Shapes: B queries (or samples), P queries of a part, T tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tracelib.models.decode_cache import DecodeCache
from tracelib.models.decoding import DecodeBatch, EngineOutput, Prefill
from tracelib.models.encoder import Encoder
from tracelib.models.gates import Gate, GateFeatures
from tracelib.models.pictures import read_pictures
from tracelib.models.prompt_prefix import (
    drop_prefix,
    find_common_prefix,
    read_prefix,
    repeat_cache,
)
from tracelib.models.router import DifficultyRouter
from tracelib.models.sampling import Sampling
from tracelib.types import EncoderInput


class ReasoningEngine:
    """Embeds queries, letting a gate decide which of them think first.

    Args:
        encoder: The model.
        router: The head behind `think_probability`, or None.
        max_rationale_tokens: Longest thought; then the embedding token is appended and the row
            marked as forced.
        decode_batch_size: Most queries that think at the same time. More are faster until memory
            or arithmetic is exhausted; the result does not depend on it. Memory for all of them is
            taken once one thinks, and on a CPU kept for the next call.

    Raises:
        ValueError: A size is less than 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        router: DifficultyRouter | None,
        max_rationale_tokens: int,
        decode_batch_size: int = 128,
    ) -> None:
        for name, size in (
            ("max_rationale_tokens", max_rationale_tokens),
            ("decode_batch_size", decode_batch_size),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}, must be at least 1 (model.{name})")
        self.encoder, self.router = encoder, router
        self.max_rationale_tokens = max_rationale_tokens
        self.decode_batch_size = decode_batch_size
        self._cache: DecodeCache | None = None

    @torch.no_grad()
    def embed_queries(
        self,
        prompts: Sequence[EncoderInput],
        gate: Gate,
        task_prior: Tensor,
        query_ids: Tensor,
        sampling: Sampling | None = None,
    ) -> EngineOutput:
        """Embed prompts.

        Args:
            prompts: Prompts up to the generation prompt, in parts that are read at once, best of
                similar length; padded on either side, in host memory or on the model's device.
            gate: Decides which rows think.
            task_prior: `[B]` share of hard training queries of each row's task.
            query_ids: `[B]` int64 numbers of the queries, over all parts.
            sampling: How tokens are drawn; None writes the most likely ones. With several samples,
                B of the output is the queries times the samples, query by query.

        Raises:
            ValueError: The lengths of the arguments differ.
        """
        sizes = [len(part.input_ids) for part in prompts]
        if not sum(sizes) == len(task_prior) == len(query_ids):
            raise ValueError(
                f"{sum(sizes)} prompts, {len(task_prior)} task priors, {len(query_ids)} query ids"
            )
        sampling = sampling or Sampling()
        num_rows = sum(sizes) * sampling.num_samples
        cache = self._take_cache(num_rows)
        batch = DecodeBatch(self.encoder, num_rows, sampling, self.max_rationale_tokens, cache)
        prefix = find_common_prefix(prompts)
        shared, first = read_prefix(self.encoder, prefix), 0
        for part, size in zip(read_pictures(self.encoder, prompts), sizes, strict=True):
            rows = slice(first, first + size)
            device = self.encoder.device
            batch.start(
                self._read(
                    part,
                    shared,
                    gate,
                    task_prior[rows].to(device),
                    query_ids[rows].to(device),
                ),
                first,
            )
            batch.decode(is_last=first + size == sum(sizes))
            first += size
        if self.encoder.device.type == "cpu":  # a GPU's memory is torch's to keep
            self._cache = cache
        return batch.finish(self.encoder.hidden_size)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of."""
        return vars(self) | {"_cache": None}

    def _take_cache(self, num_rows: int) -> DecodeCache:
        """Return the decode batch's cache, which is nobody else's until the call is over."""
        cache, self._cache = self._cache, None
        if self.encoder.device.type != "cpu":
            return DecodeCache(min(self.decode_batch_size, num_rows))
        if cache is None or cache.num_slots != self.decode_batch_size:
            return DecodeCache(self.decode_batch_size)
        return cache

    def _read(
        self,
        prompts: EncoderInput,
        shared: DynamicCache,
        gate: Gate,
        task_prior: Tensor,
        query_ids: Tensor,
    ) -> Prefill:
        """Read the prompts of a part, but for the prefix in `shared`, and ask the gate."""
        positions, deltas = self.encoder.compute_positions(prompts)
        lengths = prompts.attention_mask.sum(-1, keepdim=True)
        num_shared = shared.get_seq_length()
        prompts, positions = drop_prefix(prompts, positions, num_shared)
        cache = repeat_cache(shared, len(lengths))
        last = lengths[:, 0] - num_shared - 1
        states = self.encoder.run_backbone(prompts, positions, cache, last)[:, 0]
        logits = self.encoder.predict_tokens(states)
        if self.router is None:
            probability = torch.full((len(states),), torch.nan, device=states.device)
        else:
            probability = torch.sigmoid(self.router(states))
        features = GateFeatures(
            emb_is_first=logits.argmax(-1) == self.encoder.emb_token_id,
            think_probability=probability,
            task_prior=task_prior,
            query_ids=query_ids,
        )
        mask, next_positions = prompts.attention_mask, (lengths + deltas).to(positions.dtype)
        return Prefill(cache, mask, next_positions, states, logits, features, gate.decide(features))
