"""Training and embedding: one LightningModule for every method, which is a choice of its arguments.

Shapes: B queries, C candidates over all ranks, D dimensions.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tracelib.distributed import (
    average_over_ranks,
    gather_sizes,
    gather_tensor,
    gather_with_grad,
    get_rank,
)
from tracelib.losses.contrastive import InfoNCELoss
from tracelib.losses.language_modeling import compute_lm_loss
from tracelib.losses.routing import compute_router_loss
from tracelib.models.decoding import EngineOutput
from tracelib.models.encoder import Encoder, EncoderOutput
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import FirstTokenGate, Gate, HeadGate
from tracelib.models.router import NUM_TASKS, DifficultyRouter
from tracelib.types import CandidateBatch, QueryBatch, TrainBatch


class RetrievalModule(LightningModule):
    """Reason-then-embed retrieval: TRACE, direct encoding and what lies between.

    The joint loss is `contrastive_weight * InfoNCE + lm_weight * cross-entropy + router_weight *
    router loss`. The cross-entropy runs over rationales and the embedding token, on queries and
    candidates alike, per token of the global
    batch: that is what teaches when to stop, and when to answer at once.

    Args:
        encoder: The model.
        optimizer: Makes the optimizer from the trained parameters.
        contrastive: The contrastive loss; its temperature is there.
        gate: Which queries think in `validate`, `test` and `predict`.
        contrastive_weight: Weight of the contrastive loss, >= 0.
        lm_weight: Weight of the language-modelling loss, >= 0.
        router_weight: Weight of the router loss, >= 0; 0 builds no router.
        router_stop_gradient: Keep the router's gradient out of the backbone.
        max_rationale_tokens: Longest thought when embedding; longer ones get the embedding token
            appended and are counted.
        decode_batch_size: Most queries that think at the same time when embedding.
        warmup_fraction: Share of all steps with linear warm-up, 0 .. 1; a cosine decays to zero
            after it.

    Raises:
        ValueError: A weight or `warmup_fraction` is out of its range, or the gate asks the router
            and there is none.

    References:
        TRACE, arXiv 2603.02929, section 3.3 and table 8.
    """

    task_counts: Tensor

    def __init__(
        self,
        encoder: Encoder,
        optimizer: OptimizerCallable,
        contrastive: InfoNCELoss,
        gate: Gate | None = None,
        contrastive_weight: float = 1.0,
        lm_weight: float = 1.0,
        router_weight: float = 1.0,
        router_stop_gradient: bool = True,
        max_rationale_tokens: int = 256,
        decode_batch_size: int = 128,
        warmup_fraction: float = 0.03,
    ) -> None:
        super().__init__()
        for name, weight in (
            ("contrastive", contrastive_weight),
            ("lm", lm_weight),
            ("router", router_weight),
        ):
            if weight < 0:
                raise ValueError(f"{name}_weight is {weight}, must be >= 0 (model.{name}_weight)")
        if not 0 <= warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction is {warmup_fraction}, allowed 0 .. 1 (model)")
        self.encoder, self.optimizer, self.contrastive = encoder, optimizer, contrastive
        self.gate: Gate = gate or FirstTokenGate()
        self.contrastive_weight, self.lm_weight = contrastive_weight, lm_weight
        self.router_weight, self.warmup_fraction = router_weight, warmup_fraction
        self.router = (
            DifficultyRouter(encoder.hidden_size, stop_gradient=router_stop_gradient)
            if router_weight > 0
            else None
        )
        if self.router is None and isinstance(self.gate, HeadGate):
            raise ValueError("the gate is HeadGate, but model.router_weight 0 builds no router")
        self.engine = ReasoningEngine(encoder, self.router, max_rationale_tokens, decode_batch_size)
        # Easy and hard training queries seen per task: what the task_prior gate knows.
        self.register_buffer("task_counts", torch.zeros(NUM_TASKS, 2, dtype=torch.long))
        # Checkpoints hold what is trained; on_load_checkpoint checks that nothing else is missing.
        self.strict_loading = False

    def training_step(self, batch: TrainBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the joint loss, with the router's logits for the routing monitor."""
        query = EncoderOutput.join([self.encoder(chunk) for chunk in batch.query])
        candidate = self.encoder(batch.candidate)
        losses = {
            "contrastive_loss": self._compute_contrastive_loss(query, candidate, batch),
            "lm_loss": self._compute_lm_loss(query, candidate),
        }
        loss = (
            self.contrastive_weight * losses["contrastive_loss"]
            + self.lm_weight * losses["lm_loss"]
        )
        router_logits = torch.zeros(len(batch.task_ids), device=self.device)
        if self.router is not None:
            router_logits = self.router(query.prompt_state)
            num_known = average_over_ranks((batch.difficulty >= 0).sum().float())
            losses["router_loss"] = compute_router_loss(router_logits, batch.difficulty, num_known)
            loss = loss + self.router_weight * losses["router_loss"]
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {self.global_step} (lower the learning rate): "
                f"{losses}"
            )
        self._count_tasks(batch)
        # Each rank divides by mean counts, so only the mean over ranks is the global batch's loss.
        size = len(batch.task_ids)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        logged = {f"train/{name}": value for name, value in losses.items()}
        self.log_dict(logged, batch_size=size, sync_dist=True)
        return {
            "loss": loss,
            "router_logits": router_logits.detach(),
            "difficulty": batch.difficulty,
        }

    def _compute_contrastive_loss(
        self, query: EncoderOutput, candidate: EncoderOutput, batch: TrainBatch
    ) -> Tensor:
        """Local queries against the candidates of all ranks; other positives are masked."""
        candidate_ids = gather_tensor(batch.candidate_ids)
        # Ranks may hold different numbers of candidates: not every query has hard negatives.
        sizes = gather_sizes(len(batch.candidate_ids), self.device)
        targets = torch.arange(len(batch.task_ids), device=self.device) + sum(sizes[: get_rank()])
        is_positive = (batch.positive_ids[:, :, None] == candidate_ids).any(1)
        is_target = torch.arange(len(candidate_ids), device=self.device) == targets[:, None]
        loss: Tensor = self.contrastive(
            query.embedding,
            gather_with_grad(candidate.embedding),
            targets,
            is_positive & ~is_target,
        )
        return loss

    def _compute_lm_loss(self, query: EncoderOutput, candidate: EncoderOutput) -> Tensor:
        logits = torch.cat([query.lm_logits, candidate.lm_logits])
        targets = torch.cat([query.lm_targets, candidate.lm_targets])
        count = average_over_ranks(torch.tensor(float(len(targets)), device=self.device))
        return compute_lm_loss(logits, targets, count)

    def _count_tasks(self, batch: TrainBatch) -> None:
        tasks, difficulty = gather_tensor(batch.task_ids), gather_tensor(batch.difficulty)
        known = difficulty >= 0
        is_hard = (difficulty[known] >= 0.5).long()  # a label, or a probability
        counts = torch.bincount(tasks[known] * 2 + is_hard, minlength=2 * NUM_TASKS)
        self.task_counts += counts.view(NUM_TASKS, 2)

    def get_task_prior(self, task_ids: Tensor) -> Tensor:
        """Return `[B]` the share of hard training queries of each query's task; 0 if never seen."""
        prior = self.task_counts[:, 1] / self.task_counts.sum(1).clamp(min=1)
        return prior[task_ids]

    def embed_queries(self, batch: QueryBatch, gate: Gate | None = None) -> EngineOutput:
        """Embed queries under `gate`, or under the recipe's."""
        prior = self.get_task_prior(batch.task_ids.to(self.device))
        return self.engine.embed_queries(batch.inputs, gate or self.gate, prior, batch.query_ids)

    def embed_candidates(self, batch: CandidateBatch) -> Tensor:
        """Return `[B, D]` embeddings of candidates, which never reason; float32, not normalised."""
        output: EncoderOutput = self.encoder(batch.inputs)
        return output.embedding.float()

    def validation_step(  # type: ignore[override]
        self, batch: QueryBatch | CandidateBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> EngineOutput | Tensor:
        """Embed a batch of queries or candidates; a callback collects and ranks them."""
        return (
            self.embed_queries(batch)
            if isinstance(batch, QueryBatch)
            else self.embed_candidates(batch)
        )

    test_step = validation_step  # type: ignore[assignment]
    predict_step = validation_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer over the trained parameters, and its schedule."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(self.warmup_fraction * total))

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (
                1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup)))
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _list_checkpoint_keys(self) -> set[str]:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {*trained, "task_counts"} & set(self.state_dict())

    def compute_fingerprint(self) -> str:
        """Return a digest of the backbone and of all that is trained; call it before merging."""
        digest = hashlib.sha256(f"{self.encoder.fingerprint} {self.encoder.lora}".encode())
        state = self.state_dict()
        for name in sorted(self._list_checkpoint_keys()):
            digest.update(name.encode())
            digest.update(state[name].cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and the fingerprint of the backbone it was trained on."""
        keys = self._list_checkpoint_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keys}
        checkpoint["backbone_fingerprint"] = self.encoder.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another backbone or recipe.

        Raises:
            ValueError: The backbone's fingerprint differs, or trained weights are missing or
                unexpected.
        """
        found = checkpoint.get("backbone_fingerprint")
        if found != self.encoder.fingerprint:
            raise ValueError(
                f"the checkpoint was trained on backbone {found}, the recipe loads "
                f"{self.encoder.fingerprint}: set "
                "model.encoder.init_args.backbone to the checkpoint's"
            )
        expected, given = self._list_checkpoint_keys(), set(checkpoint["state_dict"])
        if expected != given:
            raise ValueError(
                f"the checkpoint lacks {sorted(expected - given)[:5]} and has unexpected "
                f"{sorted(given - expected)[:5]}: "
                "fit it with the same model.encoder and model.router_weight as it was trained with"
            )
