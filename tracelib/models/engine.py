"""Gate-first inference: one prefill answers every easy query, and only the thinking ones decode.

The state that predicts the first token is at once the direct embedding, the implicit gate and the
router's input, so the gate costs nothing. Thinking rows go on in a smaller batch that shrinks as
rows reach the embedding token. Shapes: B queries, A queries still thinking, T tokens, D dimensions,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from tracelib.models.encoder import Encoder
from tracelib.models.router import DifficultyRouter, Gate, GateFeatures
from tracelib.types import EncoderInput


@dataclass
class EngineOutput:
    """What became of a batch of queries.

    Args:
        embeddings: `[B, D]` states at the read position, float32, not normalised.
        thinks: `[B]` whether the gate had the query think.
        think_probability: `[B]` the router's probability; NaN without a router.
        rationale_token_ids: What each query wrote before its embedding token; empty for a bypass.
        is_forced: `[B]` whether the limit was reached and the embedding token appended.
    """

    embeddings: Tensor
    thinks: Tensor
    think_probability: Tensor
    rationale_token_ids: list[list[int]]
    is_forced: Tensor


class ReasoningEngine:
    """Embeds queries, letting a gate decide which of them think first.

    Args:
        encoder: The model.
        router: The head behind `think_probability`, or None.
        max_rationale_tokens: Longest thought; then the embedding token is appended and the row
            marked as forced.

    Raises:
        ValueError: `max_rationale_tokens` is less than 1.
    """

    def __init__(
        self, encoder: Encoder, router: DifficultyRouter | None, max_rationale_tokens: int
    ) -> None:
        if max_rationale_tokens < 1:
            raise ValueError(f"max_rationale_tokens is {max_rationale_tokens}, must be at least 1")
        self.encoder, self.router = encoder, router
        self.max_rationale_tokens = max_rationale_tokens

    @torch.no_grad()
    def embed_queries(self, prompts: EncoderInput, gate: Gate, task_prior: Tensor) -> EngineOutput:
        """Embed left-padded prompts.

        Args:
            prompts: Prompts up to the generation prompt, padded on the left.
            gate: Decides which rows think.
            task_prior: `[B]` share of hard training queries of each row's task.

        Raises:
            ValueError: The prompts are not padded on the left.
        """
        if not bool(prompts.attention_mask[:, -1].all()):
            raise ValueError("prompts must be padded on the left")
        cache = DynamicCache()
        positions, deltas = self.encoder.compute_positions(prompts)
        states = self.encoder.run_backbone(prompts, positions, cache)[:, -1]
        logits = self.encoder.predict_tokens(states)
        features = GateFeatures(
            emb_is_first=logits.argmax(-1) == self.encoder.emb_token_id,
            think_probability=self._compute_think_probability(states),
            task_prior=task_prior,
        )
        thinks = gate.decide(features)
        output = EngineOutput(
            embeddings=states.float(),
            thinks=thinks,
            think_probability=features.think_probability,
            rationale_token_ids=[[] for _ in range(len(thinks))],
            is_forced=torch.zeros_like(thinks),
        )
        # A thinking row writes at least one token, also where the model would have answered at
        # once.
        tokens = logits.index_fill(
            -1, torch.tensor([self.encoder.emb_token_id], device=logits.device), -torch.inf
        ).argmax(-1)
        tokens = torch.where(thinks, tokens, self.encoder.emb_token_id)
        rows = torch.arange(len(thinks), device=thinks.device)
        if self.encoder.read_offset == -1:
            rows = rows[thinks]
        if len(rows):
            cache.batch_select_indices(rows)
            mask = prompts.attention_mask[rows]
            next_positions = (mask.sum(-1, keepdim=True) + deltas[rows]).to(positions.dtype)
            self._decode(output, cache, rows, tokens[rows], mask, next_positions)
        return output

    def _compute_think_probability(self, states: Tensor) -> Tensor:
        if self.router is None:
            return torch.full((len(states),), torch.nan, device=states.device)
        return torch.sigmoid(self.router(states))

    def _decode(
        self,
        output: EngineOutput,
        cache: DynamicCache,
        rows: Tensor,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
    ) -> None:
        """Write greedily until every row has its embedding token, dropping rows as they finish.

        Args:
            output: Filled in place.
            cache: Keys and values of the active rows.
            rows: `[A]` places of the active rows in the batch.
            tokens: `[A]` the next token of each.
            mask: `[A, T]` attention mask so far.
            positions: `[A, 1]` rotary position of the next token.
        """
        emb = self.encoder.emb_token_id
        for length in range(1, self.max_rationale_tokens + 2):
            forced = (tokens != emb) & (length > self.max_rationale_tokens)
            output.is_forced[rows[forced]] = True
            tokens = torch.where(forced, emb, tokens)
            fed = tokens
            for row, token in zip(rows.tolist(), fed.tolist(), strict=True):
                if token != emb:
                    output.rationale_token_ids[row].append(token)
            if self.encoder.read_offset == -1:
                # The state in hand predicted the embedding token: it is the embedding.
                going = (fed != emb).nonzero().flatten()
                if len(going) < len(rows):
                    rows, fed, mask, positions = (
                        rows[going],
                        fed[going],
                        mask[going],
                        positions[going],
                    )
                    cache.batch_select_indices(going)
            if not len(rows):
                return
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            step = EncoderInput(
                fed[:, None], mask, torch.zeros_like(fed[:, None]), torch.zeros_like(fed[:, None])
            )
            states = self.encoder.run_backbone(step, positions.expand(3, -1, -1), cache)[:, -1]
            output.embeddings[rows] = states.float()
            positions = positions + 1
            tokens = self.encoder.predict_tokens(states).argmax(-1)
            if self.encoder.read_offset == 0:
                # The embedding token was just fed: its own state is the embedding.
                going = (fed != emb).nonzero().flatten()
                if len(going) < len(rows):
                    rows, tokens, mask, positions = (
                        rows[going],
                        tokens[going],
                        mask[going],
                        positions[going],
                    )
                    cache.batch_select_indices(going)
                if not len(rows):
                    return
