"""Training and embedding: one LightningModule for every method, which is a choice of its arguments.

Shapes: B queries, C candidates over all ranks, D dimensions.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tracelib.distributed import gather_tensor
from tracelib.joint_step import JointStep, LossWeights
from tracelib.losses.contrastive import InfoNCELoss
from tracelib.models.adapter_file import check_backbone, check_weights
from tracelib.models.decoding import EngineOutput
from tracelib.models.encoder import Encoder
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import FirstTokenGate, Gate, HeadGate
from tracelib.models.rollout import Rollout
from tracelib.models.router import NUM_TASKS, ROUTER_WIDTH, DifficultyRouter
from tracelib.models.sharding import join_chunks, shard_encoder, shard_head
from tracelib.own_thoughts import OwnThoughts
from tracelib.types import CandidateBatch, ContrastiveRationale, QueryBatch, TrainBatch


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
        router_width: Hidden units of the router, >= 0; 0 makes it linear.
        max_rationale_tokens: Longest thought when embedding; longer ones get the embedding token
            appended and are counted.
        decode_batch_size: Most queries that think at the same time when embedding. More is faster,
            and takes memory for the keys and values of each.
        contrastive_rationale: What the embedding is read after in training; linked to the data's.
        rollout: How the model writes its own thoughts in training, for `self`.
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
        router_width: int = ROUTER_WIDTH,
        max_rationale_tokens: int = 256,
        decode_batch_size: int = 128,
        contrastive_rationale: ContrastiveRationale = "annotated",
        rollout: Rollout = Rollout(),
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
        if router_width < 0:
            raise ValueError(f"router_width is {router_width}, must be >= 0 (model.router_width)")
        if not 0 <= warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction is {warmup_fraction}, allowed 0 .. 1 (model)")
        self.encoder, self.optimizer, self.contrastive = encoder, optimizer, contrastive
        self.gate: Gate = gate or FirstTokenGate()
        self.warmup_fraction = warmup_fraction
        self.router = (
            DifficultyRouter(encoder.hidden_size, router_width, router_stop_gradient)
            if router_weight > 0
            else None
        )
        if self.router is None and isinstance(self.gate, HeadGate):
            raise ValueError("the gate is HeadGate, but model.router_weight 0 builds no router")
        weights = LossWeights(contrastive_weight, lm_weight, router_weight)
        self.joint_step = JointStep(encoder, self.router, contrastive, weights)
        self.engine = ReasoningEngine(encoder, self.router, max_rationale_tokens, decode_batch_size)
        self.own_thoughts = (
            OwnThoughts(encoder, rollout, decode_batch_size)
            if contrastive_rationale == "self"
            else None
        )
        # Easy and hard training queries seen per task: what the task_prior gate knows.
        self.register_buffer("task_counts", torch.zeros(NUM_TASKS, 2, dtype=torch.long))
        # Checkpoints hold what is trained; on_load_checkpoint checks that nothing else is missing.
        self.strict_loading = False

    def configure_model(self) -> None:
        """Shard the weights where `trainer.strategy` is Lightning's ModelParallelStrategy (FSDP).

        Raises:
            ValueError: The recipe asks for what devices cannot do in step with each other.
        """
        if self.device_mesh is None:
            return
        for is_asked, change in (
            (self.trainer.state.fn != "fit", "evaluate with trainer.strategy ddp"),
            (self.trainer.limit_val_batches != 0, "set trainer.limit_val_batches to 0"),
            (self.own_thoughts is not None, "set data.contrastive_rationale to annotated"),
            (any(True for _ in self.contrastive.parameters()), "set learn_temperature to false"),
        ):
            if is_asked:
                raise ValueError(f"weights are sharded over devices: {change}")
        shard_encoder(self.encoder, self.device_mesh)
        if self.router is not None:
            shard_head(self.router, self.device_mesh)

    def training_step(self, batch: TrainBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the joint loss, with the router's logits for the routing monitor."""
        if self.device_mesh is not None:
            batch = join_chunks(batch)
        if self.own_thoughts is not None:
            seed = _derive_seed("thoughts", self.global_step)
            batch = self.own_thoughts.add_to(batch, self.global_step, seed)
        output = self.joint_step.run(batch, self._backward)
        loss, losses = output.loss, output.losses
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {self.global_step} (lower the learning rate): "
                f"{losses}"
            )
        self._count_tasks(batch)
        # Each rank divides by mean counts, so only the mean over ranks is the global batch's loss.
        size = len(batch.task_ids)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        logged: dict[str, Tensor | float] = {f"train/{name}": v for name, v in losses.items()}
        logged["train/duplicate_rate"] = output.duplicate_rate
        logged["train/collision_rate"] = output.collision_rate
        self.log_dict(logged, batch_size=size, sync_dist=True)
        return {
            "loss": loss,
            "router_logits": output.router_logits,
            "difficulty": batch.difficulty.to(self.device),
        }

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the loss, scaled as Lightning scales those of the rest."""
        if self._trainer is not None:
            loss = self.trainer.precision_plugin.pre_backward(loss, self)
        with torch.autocast(self.device.type, enabled=False):
            torch.autograd.backward(loss)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Do nothing: when Lightning asks for it, a cached step has left gradients already."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and clear the gradients for the next one."""
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    def _count_tasks(self, batch: TrainBatch) -> None:
        tasks = gather_tensor(batch.task_ids.to(self.device))
        difficulty = gather_tensor(batch.difficulty.to(self.device))
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
        return self.encoder.embed(batch.inputs).float()

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

    def on_train_batch_start(self, batch: TrainBatch, batch_idx: int) -> None:
        """Make a step's randomness a function of (`seed_everything`, epoch, batch, rank).

        So dropout and rollouts are those of an uninterrupted run wherever a run goes on, and no
        random state needs to be saved.
        """
        seed = _derive_seed("step", self.current_epoch, batch_idx, self.global_rank)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def list_trained_weights(self) -> dict[str, Tensor]:
        """Return all that is trained and saved, by name, with the tasks that were counted."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        kept = {*trained, "task_counts"}
        return {name: weight for name, weight in self.state_dict().items() if name in kept}

    def compute_fingerprint(self) -> str:
        """Return a digest of the backbone and of all that is trained; call it before merging."""
        digest = hashlib.sha256(f"{self.encoder.fingerprint} {self.encoder.lora}".encode())
        for name, weight in sorted(self.list_trained_weights().items()):
            digest.update(name.encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and the fingerprint of the backbone it was trained on."""
        keys = self.list_trained_weights()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keys}
        checkpoint["backbone_fingerprint"] = self.encoder.fingerprint
        if self.own_thoughts is not None:
            checkpoint["own_thoughts"] = self.own_thoughts.store.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another backbone or recipe.

        Raises:
            AdapterError: The backbone's fingerprint differs, or trained weights are missing,
                unexpected, wrongly shaped or broken.
        """
        found = checkpoint.get("backbone_fingerprint")
        check_backbone("the checkpoint", found, self.encoder.fingerprint)
        if self.device_mesh is not None:  # the strategy has loaded and taken out the weights
            checkpoint = torch.load(self.trainer.ckpt_path, weights_only=True, mmap=True)  # type: ignore[arg-type]
        weights, step = checkpoint["state_dict"], checkpoint["global_step"]
        check_weights("the checkpoint", weights, self.list_trained_weights(), step)
        if self.own_thoughts is not None and "own_thoughts" in checkpoint:
            self.own_thoughts.store.load_state_dict(checkpoint["own_thoughts"])


def _derive_seed(*words: str | int) -> int:
    """Return a number that is a function of `seed_everything` and the words."""
    seed = os.environ.get("PL_GLOBAL_SEED", "0")
    return random.Random(" ".join(map(str, (seed, *words)))).getrandbits(32)
