"""The joint loss of one step: contrastive over all ranks, language modelling and router per chunk.

Shapes: B queries, C candidates of this rank, G candidates over all ranks, D dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracelib.distributed import (
    average_over_ranks,
    gather_sizes,
    gather_tensor,
    gather_with_grad,
    get_rank,
)
from tracelib.losses.collisions import count_duplicates
from tracelib.losses.contrastive import InfoNCELoss
from tracelib.losses.language_modeling import compute_lm_loss
from tracelib.losses.routing import compute_router_loss
from tracelib.models.encoder import Encoder, EncoderOutput
from tracelib.models.gradient_cache import CachedChunk
from tracelib.models.router import DifficultyRouter
from tracelib.types import IGNORED_LABEL, EncoderInput, TrainBatch


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the joint loss, each >= 0.

    Args:
        contrastive: Of InfoNCE.
        lm: Of the cross-entropy of rationales and embedding tokens.
        router: Of the router's cross-entropy.
    """

    contrastive: float
    lm: float
    router: float


@dataclass(frozen=True)
class StepOutput:
    """What a step gives.

    Args:
        loss: The joint loss. Its value is that of all chunks; its gradient is what `backward` was
            not called on yet.
        losses: Its terms without weights and gradient: `contrastive_loss`, `lm_loss`,
            `router_loss`.
        duplicate_rate: Share of all ranks' candidates that repeat another, 0 .. 1.
        collision_rate: Share of this rank's pairs of a query and another's candidate that are left
            out because it is a positive too, 0 .. 1.
        router_logits: `[B]` log-odds that a query needs thought, without gradient; 0 without a
            router.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    duplicate_rate: float
    collision_rate: float
    router_logits: Tensor


@dataclass(frozen=True)
class _Counts:
    """Targets per rank, on average: what sums over this rank's chunks are divided by."""

    lm_tokens: Tensor
    known_difficulties: Tensor

    @staticmethod
    def of(batch: TrainBatch, device: torch.device) -> _Counts:
        """Count the targets of a batch."""
        chunks = [*batch.query, *batch.candidate]
        tokens = sum((chunk.labels[:, 1:] != IGNORED_LABEL).sum() for chunk in chunks)
        found = torch.stack([torch.as_tensor(tokens), (batch.difficulty >= 0).sum()]).float()
        lm_tokens, known = average_over_ranks(found.to(device))
        return _Counts(lm_tokens, known)


@dataclass(frozen=True)
class _Pairs:
    """Targets `[B]`, positives `[B, P]`, and the candidates `[G]` of all ranks that they are in."""

    targets: Tensor
    positive_ids: Tensor
    candidate_ids: Tensor

    @staticmethod
    def of(batch: TrainBatch, device: torch.device) -> _Pairs:
        """Gather the candidates' ids."""
        # Ranks may hold different numbers of candidates: not every query has hard negatives.
        sizes = gather_sizes(len(batch.candidate_ids), device)
        return _Pairs(
            batch.targets.to(device) + sum(sizes[: get_rank()]),
            batch.positive_ids.to(device),
            gather_tensor(batch.candidate_ids.to(device)),
        )


_Chunk = tuple[EncoderInput, Tensor | None]
"""A chunk, with the difficulty of its queries; None for one of candidates."""

_Encoded = tuple[Tensor, dict[str, Tensor], list[Tensor]]
"""The joint loss, its terms, and the router's logits of each chunk."""


class JointStep:
    """Computes the joint loss of a batch, whose chunks are held all at once or one at a time.

    Args:
        encoder: The model.
        router: The head that learns who needs thought, or None.
        contrastive: The contrastive loss.
        weights: Weights of the terms.
    """

    def __init__(
        self,
        encoder: Encoder,
        router: DifficultyRouter | None,
        contrastive: InfoNCELoss,
        weights: LossWeights,
    ) -> None:
        self.encoder, self.router, self.contrastive = encoder, router, contrastive
        self.weights = weights

    def run(self, batch: TrainBatch, backward: Callable[[Tensor], None]) -> StepOutput:
        """Return the loss of a batch.

        Args:
            batch: Queries and candidates of this rank.
            backward: Where chunks are encoded twice, called with the loss of each chunk but the
                last; their gradients add to that of the loss that is returned. Gradients need to be
                averaged over ranks for that last one only.
        """
        counts = _Counts.of(batch, self.encoder.device)
        chunks = [*batch.candidate, *batch.query]  # the last one takes the router in
        if batch.is_cached:
            chunks = [dataclasses.replace(c, vision_outputs=c.vision_outputs or {}) for c in chunks]
        pairs = _Pairs.of(batch, self.encoder.device)
        parts = list(zip(chunks, _split_difficulty(batch), strict=True))
        if batch.is_cached:
            loss, losses, logits = self._encode_twice(parts, pairs, counts, backward)
        else:
            loss, losses, logits = self._encode_once(parts, pairs, counts)
        rates = count_duplicates(pairs.targets, pairs.positive_ids, pairs.candidate_ids)
        return StepOutput(loss, losses, *rates, router_logits=torch.cat(logits))

    def _encode_once(self, chunks: Sequence[_Chunk], pairs: _Pairs, counts: _Counts) -> _Encoded:
        """Hold the activations of all chunks."""
        outputs = [self.encoder(inputs.to(self.encoder.device)) for inputs, _ in chunks]
        contrastive = self._compute_contrastive_loss([o.embedding for o in outputs], chunks, pairs)
        parts = [
            self._compute_chunk_losses(output, difficulty, counts)
            for output, (_, difficulty) in zip(outputs, chunks, strict=True)
        ]
        losses = _add_up([{"contrastive_loss": contrastive}, *(part for part, _ in parts)])
        return self._weigh(losses), _detach(losses), [logits for _, logits in parts]

    def _encode_twice(
        self,
        chunks: Sequence[_Chunk],
        pairs: _Pairs,
        counts: _Counts,
        backward: Callable[[Tensor], None],
    ) -> _Encoded:
        """Hold all embeddings, but the activations of one chunk at a time."""
        cached = [CachedChunk.embed(self.encoder, inputs) for inputs, _ in chunks]
        leaves = [chunk.embedding for chunk in cached]
        contrastive = self._compute_contrastive_loss(leaves, chunks, pairs)
        scale = list(self.contrastive.parameters())  # its temperature, where that is learned
        pulls = torch.autograd.grad(self.weights.contrastive * contrastive, [*leaves, *scale])
        losses, logits = [{"contrastive_loss": contrastive.detach()}], []
        for number, (chunk, (_, difficulty)) in enumerate(zip(cached, chunks, strict=True)):
            output = chunk.encode_again(self.encoder)
            terms, chunk_logits = self._compute_chunk_losses(output, difficulty, counts)
            loss = self._weigh(terms) + (output.embedding * pulls[number]).sum()
            losses.append(_detach(terms))
            logits.append(chunk_logits)
            if number < len(cached) - 1:
                backward(loss)
        for parameter, pull in zip(scale, pulls[len(cached) :], strict=True):
            loss = loss + (parameter * pull).sum()
        total = _add_up(losses)
        return loss + (self._weigh(total) - loss).detach(), total, logits

    def _compute_contrastive_loss(
        self, embeddings: Sequence[Tensor], chunks: Sequence[_Chunk], pairs: _Pairs
    ) -> Tensor:
        """Local queries against the candidates of all ranks; other positives are masked."""
        sides: tuple[list[Tensor], list[Tensor]] = [], []
        for rows, (_, difficulty) in zip(embeddings, chunks, strict=True):
            sides[difficulty is None].append(rows)
        queries, candidates = map(torch.cat, sides)
        loss: Tensor = self.contrastive(
            queries,
            gather_with_grad(candidates),
            pairs.targets,
            pairs.positive_ids,
            pairs.candidate_ids,
        )
        return loss

    def _compute_chunk_losses(
        self, output: EncoderOutput, difficulty: Tensor | None, counts: _Counts
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return what a chunk adds to the losses, and the router's logits of its queries."""
        losses = {"lm_loss": compute_lm_loss(output.lm_logits, output.lm_targets, counts.lm_tokens)}
        device = output.embedding.device
        if difficulty is None:  # candidates
            return losses, torch.zeros(0, device=device)
        if self.router is None:
            return losses, torch.zeros(len(difficulty), device=device)
        logits = self.router(output.prompt_state)
        losses["router_loss"] = compute_router_loss(
            logits, difficulty.to(device), counts.known_difficulties
        )
        return losses, logits.detach()

    def _weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of terms."""
        weights = {
            "contrastive_loss": self.weights.contrastive,
            "lm_loss": self.weights.lm,
            "router_loss": self.weights.router,
        }
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _split_difficulty(batch: TrainBatch) -> list[Tensor | None]:
    """Return the difficulty of each chunk's queries, None for chunks of candidates."""
    sizes = [len(chunk.input_ids) for chunk in batch.query]
    return [*[None] * len(batch.candidate), *torch.split(batch.difficulty, sizes)]


def _add_up(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the sum of each term over the parts that have it."""
    names = {name: None for part in parts for name in part}
    return {name: torch.stack([p[name] for p in parts if name in p]).sum() for name in names}


def _detach(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}
