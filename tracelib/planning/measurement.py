"""One real step with random weights, to hold a plan against.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from tracelib.joint_step import JointStep, LossWeights
from tracelib.losses.contrastive import InfoNCELoss
from tracelib.models.cost import count_flops, estimate_activations, estimate_memory
from tracelib.models.model_sizes import ModelSize
from tracelib.models.step_shape import ChunkShape, StepShape
from tracelib.planning.random_encoder import RandomEncoder
from tracelib.planning.saved_tensors import SavedTensorMeter
from tracelib.types import IGNORED_LABEL, EncoderInput, TrainBatch

CPU_ATTENTION = {  # which torch does not count by itself
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: unwrap(sdpa_flop),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: unwrap(sdpa_backward_flop),
}


@dataclass(frozen=True)
class Measurement:
    """What one step took, beside what was planned.

    Args:
        device: Where it ran.
        seconds: Time of a step, after one that does not count.
        flops: Operations of its matrix products, as torch counts them.
        planned_flops: Those of the plan.
        num_bytes: Peak memory on a CUDA device, else the largest sum of what was kept for the
            backward pass.
        planned_bytes: The same, planned.
    """

    device: str
    seconds: float
    flops: int
    planned_flops: int
    num_bytes: int
    planned_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return all numbers."""
        return dataclasses.asdict(self)


def print_measurement(console: Console, found: Measurement) -> None:
    """Print what was measured, and the plan as a ratio to it."""
    console.print(
        f"measured on {found.device}: {found.seconds:.3g} s a step, "
        f"{found.flops / found.seconds / 1e12:,.3f} TFLOP/s; planned / measured: operations "
        f"{found.planned_flops / found.flops:.3f}, memory "
        f"{found.planned_bytes / found.num_bytes:.3f}",
        highlight=False,
    )


def measure_step(model: Namespace, size: ModelSize, step: StepShape) -> Measurement:
    """Run a step of a shape with random weights, on a CUDA device if there is one.

    Thoughts are taken as written: what writing them costs is left out on both sides.

    Args:
        model: The `model` part of a recipe.
        size: Its sizes.
        step: The shape.

    Raises:
        ValueError: A chunk's pictures do not fit into its rows.
    """
    step = dataclasses.replace(step, num_written_tokens=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = RandomEncoder(model.encoder.init_args, device).train()
    joint_step = JointStep(encoder, None, InfoNCELoss(), LossWeights(1.0, 1.0, 0.0))
    batch = make_batch(encoder, step)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-5)
    is_half = step.activation_bytes == 2

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            loss = joint_step.run(batch, torch.autograd.backward).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    meter = SavedTensorMeter(encoder.parameters())
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, meter:
        run()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    memory = estimate_memory(size, step)
    planned = memory.total - memory.reserved
    if device == "cpu":
        planned = estimate_saved(size, step)
    return Measurement(
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        seconds=seconds,
        flops=counter.get_total_flops(),
        planned_flops=count_flops(size, step).total,
        num_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else meter.peak_bytes,
        planned_bytes=planned,
    )


def estimate_saved(size: ModelSize, step: StepShape) -> int:
    """Return the bytes of the plan that the backward pass reads at most, weights left out."""
    language = size.language
    table = language.vocabulary * language.hidden * language.weight_bytes * language.trains_rows
    casts = language.adapter_weights * step.activation_bytes * (step.activation_bytes == 2)
    kept = [
        estimate_activations(size, step, chunk)
        + chunk.num_targets * language.vocabulary * 4
        + table
        for chunk in step.chunks
    ]
    return (max(kept) if step.is_cached else sum(kept)) + casts


def make_batch(encoder: RandomEncoder, step: StepShape) -> TrainBatch:
    """Return a batch of random tokens and pictures of a step's shape.

    Raises:
        ValueError: A chunk's pictures do not fit into its rows.
    """
    # Candidates come first; a query chunk starts when all of this device's are there.
    num_candidates = sum(chunk.num_sequences for chunk in step.chunks) - step.num_queries
    sides: tuple[list[EncoderInput], list[EncoderInput]] = [], []
    seen = 0
    for chunk in step.chunks:
        sides[seen < num_candidates].append(make_input(encoder, chunk))
        seen += chunk.num_sequences
    queries = torch.arange(step.num_queries)
    return TrainBatch(
        query=sides[0],
        candidate=sides[1],
        task_ids=torch.zeros_like(queries),
        query_ids=queries,
        difficulty=-torch.ones(step.num_queries),
        targets=queries,
        positive_ids=queries[:, None],
        candidate_ids=torch.arange(num_candidates),
        is_cached=step.is_cached,
    )


def make_input(encoder: RandomEncoder, chunk: ChunkShape) -> EncoderInput:
    """Return a chunk of random tokens and pictures.

    Raises:
        ValueError: Its pictures do not fit into its rows.
    """
    image_tokens = chunk.num_image_tokens // max(chunk.num_images, 1)
    images_per_row = -(-chunk.num_images // chunk.num_sequences)
    num_targets = chunk.num_targets // chunk.num_sequences
    if images_per_row * image_tokens + num_targets + 1 > chunk.width:
        raise ValueError(
            f"{images_per_row} pictures of {image_tokens} tokens do not fit into {chunk.width}: "
            "measure with whole numbers of pictures (--query_images, --candidate_images)"
        )
    ids = torch.randint(*encoder.plain_tokens, (chunk.num_sequences, chunk.width))
    is_image = torch.zeros_like(ids, dtype=torch.bool)
    for number in range(chunk.num_images):
        row, place = number % chunk.num_sequences, number // chunk.num_sequences
        is_image[row, place * image_tokens : (place + 1) * image_tokens] = True
    ids[is_image] = encoder.image_token_id
    ids[:, -1] = encoder.emb_token_id
    labels = torch.full_like(ids, IGNORED_LABEL)
    labels[:, -num_targets:] = ids[:, -num_targets:]
    grid = make_grid(image_tokens, encoder.merge) if chunk.num_images else None
    return EncoderInput(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=is_image.long(),
        labels=labels,
        pixel_values=None
        if grid is None
        else torch.randn(chunk.num_images * int(grid.prod()), encoder.patch_features),
        image_grid_thw=None if grid is None else grid.repeat(chunk.num_images, 1),
    )


def make_grid(image_tokens: int, merge: int) -> Tensor:
    """Return `[1, 3]` the patches (time, height, width) of the squarest picture of some tokens.

    >>> make_grid(12, 2)
    tensor([[1, 6, 8]])
    """
    height = next(n for n in range(math.isqrt(image_tokens), 0, -1) if image_tokens % n == 0)
    return torch.tensor([[1, merge * height, merge * (image_tokens // height)]])
