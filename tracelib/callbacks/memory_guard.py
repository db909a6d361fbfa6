"""Says before the first step whether it fits into memory, and what to change if not."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from tracelib.models.backbone_parts import find_decoder_layers
from tracelib.models.cost import StepMemory, estimate_memory
from tracelib.models.model_sizes import ModelSize, count_parameters, measure_model
from tracelib.models.step_shape import ChunkShape, StepShape
from tracelib.module import RetrievalModule
from tracelib.types import TrainBatch

_GIB = 1 << 30


class StepTooLargeError(ValueError):
    """A step that does not fit into the device's memory."""


class MemoryGuard(Callback):
    """Estimates the memory of a step from its first batch, and stops a fit that cannot go well.

    The estimate is that of the `plan` verb, for the sequences and pictures that are really there.
    On a CUDA device it is held against the free memory, elsewhere against the machine's.

    Args:
        limit_gb: Memory to keep below, in GiB, above 0; null takes what the device has.

    Raises:
        ValueError: `limit_gb` is not above 0.
    """

    def __init__(self, limit_gb: float | None = None) -> None:
        if limit_gb is not None and limit_gb <= 0:
            raise ValueError(f"limit_gb is {limit_gb}, must be above 0 (memory_guard.limit_gb)")
        self.limit_gb = limit_gb
        self._model: ModelSize | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Measure the model while its weights are whole: a strategy may cut them up."""
        assert isinstance(pl_module, RetrievalModule)
        self._model = measure_module(pl_module) if stage == "fit" else None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: TrainBatch, batch_idx: int
    ) -> None:
        """Judge the first batch.

        Raises:
            StepTooLargeError: It needs more memory than there is.
        """
        if self._model is None:
            return
        assert isinstance(pl_module, RetrievalModule)
        model, self._model = self._model, None
        step = shape_batch(pl_module, batch, str(trainer.precision), trainer.world_size)
        num_shards = 1
        if isinstance(trainer.strategy, FSDPStrategy):
            num_shards = trainer.world_size
        elif isinstance(trainer.strategy, ModelParallelStrategy):
            num_shards = trainer.num_devices  # of this node

        def estimate(changed: StepShape) -> StepMemory:
            return estimate_memory(model, changed, trainer.world_size, num_shards)

        limit = self._find_limit(pl_module.device, model.total.weight_bytes)
        line = describe_step(step, estimate(step), limit)
        rank_zero_info(line)
        if estimate(step).total > limit:
            raise StepTooLargeError(f"{line}; {suggest_change(step, estimate, limit)}")

    def _find_limit(self, device: torch.device, weight_bytes: int) -> int:
        if self.limit_gb is not None:
            return int(self.limit_gb * _GIB)
        # What is allocated already, such as weights, is part of the estimate.
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return read_available_memory() + weight_bytes


def read_available_memory() -> int:
    """Return the bytes of the machine that programs can have; all of them where nobody counts."""
    counts = Path("/proc/meminfo")
    if counts.exists():
        lines = dict(line.split(":", 1) for line in counts.read_text().splitlines())
        return int(lines["MemAvailable"].removesuffix("kB")) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measure_module(module: RetrievalModule) -> ModelSize:
    """Return the sizes of a module's model, its router among the parts."""
    size = measure_model(module.encoder.model, module.encoder.projectors)
    if module.router is not None:
        size.parts["router"] = count_parameters(module.router.parameters())
    return size


def shape_batch(
    module: RetrievalModule, batch: TrainBatch, precision: str, world_size: int
) -> StepShape:
    """Return the shape of the step of a batch; thoughts yet to be written at their longest.

    Args:
        module: The module that is trained.
        batch: The batch.
        precision: Lightning's precision, such as `bf16-mixed`.
        world_size: Devices that train together.
    """
    encoder, query = module.encoder, [ChunkShape.of_input(chunk) for chunk in batch.query]
    num_written = 0
    if module.own_thoughts is not None:
        longest = module.own_thoughts.rollout.max_tokens
        num_written = sum(c.num_sequences * (c.width + longest) for c in query)
        query = [dataclasses.replace(c, width=c.width + longest + 1) for c in query]
    is_half = encoder.dtype != torch.float32 or precision.startswith(("bf16", "16"))
    return StepShape(
        chunks=(*(ChunkShape.of_input(chunk) for chunk in batch.candidate), *query),
        num_queries=len(batch.task_ids),
        num_candidates=len(batch.candidate_ids) * world_size,
        is_cached=batch.is_cached,
        is_checkpointed=bool(find_decoder_layers(encoder.model)[0].gradient_checkpointing),
        activation_bytes=2 if is_half else 4,
        num_written_tokens=num_written,
        num_logits_rows=module.contrastive.chunk_size,
        keeps_attention=encoder.attention == "eager",
    )


def describe_step(step: StepShape, memory: StepMemory, limit: int) -> str:
    """Return a step's memory in one line."""
    largest = max(step.chunks, key=lambda chunk: chunk.num_tokens)
    how = "one at a time" if step.is_cached else "all held"
    state = memory.gradients + memory.optimizer + memory.buckets
    shown = (memory.weights, state, memory.activations, memory.logits)
    rest = memory.total - sum(shown)
    numbers = [f"{number / _GIB:,.2f}" for number in (*shown, rest)]
    return (
        f"a step of {step.num_queries} queries, {len(step.chunks)} chunks {how}, the largest "
        f"{largest.num_sequences} x {largest.width} tokens, takes about "
        f"{memory.total / _GIB:,.2f} GiB of {limit / _GIB:,.2f}: weights {numbers[0]}, trained "
        f"state {numbers[1]}, activations {numbers[2]}, logits {numbers[3]}, rest {numbers[4]}"
    )


def suggest_change(step: StepShape, estimate: Callable[[StepShape], StepMemory], limit: int) -> str:
    """Return what to change so that a step fits into `limit` bytes."""
    saved = dataclasses.replace(step, is_checkpointed=True)
    found = []
    if size := _find_micro_batch_size(step, estimate, limit):
        found.append(f"data.micro_batch_size {size} would fit")
    if not step.is_checkpointed:
        option = "model.encoder.init_args.gradient_checkpointing true"
        if estimate(saved).total <= limit:
            found.append(f"{option} would fit")
        elif size := _find_micro_batch_size(saved, estimate, limit):
            found.append(f"{option} with data.micro_batch_size {size} would fit")
    if found:
        return ", or ".join(found)
    images = sum(chunk.num_image_tokens for chunk in step.chunks)
    share = f"{images / step.num_tokens:.0%} of the tokens are of pictures"
    return (
        "not even one sequence at a time with gradient checkpointing fits: lower "
        f"data.max_image_tokens ({share}) or data.max_text_tokens, or load the frozen weights in "
        "fewer bits (model.encoder.init_args.quantization)"
    )


def _find_micro_batch_size(
    step: StepShape, estimate: Callable[[StepShape], StepMemory], limit: int
) -> int:
    """Return the largest halved chunk size that fits, 0 for none."""
    size = max(chunk.num_sequences for chunk in step.chunks)
    while size and estimate(step.split(size)).total > limit:
        size //= 2
    return size
