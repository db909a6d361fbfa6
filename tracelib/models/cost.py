"""What a training step costs on one device: floating-point operations and memory, by formula.

Matrices cost two operations per weight and token forward, as many backward for the gradient of
their input, and as many again for their own where they are trained: frozen ones save that.
Elementwise operations are left out. Activations are counted tensor by tensor, as the backward pass
of a pre-norm transformer with a gated MLP reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from tracelib.models.model_sizes import ModelSize
from tracelib.models.step_shape import ChunkShape, StepShape

_FLOAT = 4
_RESERVED_BYTES = 1 << 30
_OPTIMIZER_STATES = 2


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of a step on one device.

    Args:
        vision: Frozen vision encoder, run once over each picture.
        forward: Projector, language model and head, forward with gradient.
        backward: Their backward pass.
        checkpointing: Layers computed again by gradient checkpointing.
        cached_gradients: The forward pass without gradient of cached gradients.
        writing: The thoughts that the model writes itself.
        contrastive: Cosines of queries and candidates, forward and backward.
    """

    vision: int
    forward: int
    backward: int
    checkpointing: int
    cached_gradients: int
    writing: int
    contrastive: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step on one device at its peak, in bytes.

    Args:
        weights: Of the model.
        gradients: Of what is trained.
        optimizer: Two states for each trained weight, in its type, as Adam has.
        buckets: The copy of the gradients that DDP sends.
        activations: What the backward pass reads: of one chunk with cached gradients, else of all.
        logits: Logits of the tokens to predict, their softmax and gradient, held likewise.
        row_copies: The copies of token table and head that peft makes to train single rows.
        vision_outputs: What the frozen vision encoder gave, kept for later passes.
        contrastive: Embeddings, their gradients, and the contrastive logits.
        workspace: What lives for a moment only.
        reserved: The device's context and the allocator's rounding.
    """

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    activations: int
    logits: int
    row_copies: int
    vision_outputs: int
    contrastive: int
    workspace: int
    reserved: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(dataclasses.astuple(self))


def count_flops(model: ModelSize, step: StepShape) -> StepFlops:
    """Return the floating-point operations of a step.

    Attention counts every pair of tokens of a padded sequence, as `sdpa` with a mask computes them.
    """
    forward = sum(_count_layers(model, chunk) for chunk in step.chunks)
    projector = 2 * sum(_count_projector_weights(model, chunk) for chunk in step.chunks)
    head = 2 * sum(_count_head_weights(model, chunk) for chunk in step.chunks)
    backward = sum(_count_layers_backward(model, c, step.keeps_attention) for c in step.chunks)
    language = model.language
    matrices = 2 * (language.matrix_weights + language.adapter_weights)
    pairs = step.num_queries * step.num_candidates
    return StepFlops(
        vision=sum(_count_vision(model, chunk) for chunk in step.chunks),
        forward=forward + projector + head,
        backward=backward
        + 2 * projector * model.vision.trains_projector
        + head * (2 if language.is_trained or language.trains_rows else 1),
        checkpointing=forward * step.is_checkpointed,
        cached_gradients=(forward + projector) * step.is_cached,
        writing=matrices * step.num_written_tokens,
        contrastive=6 * pairs * language.hidden,
    )


def _count_layers(model: ModelSize, chunk: ChunkShape) -> int:
    language = model.language
    matrices = 2 * chunk.num_tokens * (language.matrix_weights + language.adapter_weights)
    return matrices + _count_attention(model, chunk)


def _count_attention(model: ModelSize, chunk: ChunkShape) -> int:
    """Scores and their product with the values, each two operations per pair and width."""
    language = model.language
    return 4 * language.layers * chunk.num_tokens * chunk.width * language.query_width


def _count_layers_backward(model: ModelSize, chunk: ChunkShape, keeps_attention: bool) -> int:
    language = model.language
    matrices = (4 if language.is_trained else 2) * language.matrix_weights
    adapters = 4 * language.adapter_weights
    attention = _count_attention(model, chunk) * 2
    if not keeps_attention:  # scores are computed again: five products, of which two were forward
        attention = attention * 5 // 4
    return chunk.num_tokens * (matrices + adapters) + attention


def _count_projector_weights(model: ModelSize, chunk: ChunkShape) -> int:
    return chunk.num_image_tokens * model.vision.projector_weights


def _count_head_weights(model: ModelSize, chunk: ChunkShape) -> int:
    return chunk.num_targets * model.language.vocabulary * model.language.hidden


def _count_vision(model: ModelSize, chunk: ChunkShape) -> int:
    vision = model.vision
    patches = chunk.num_image_tokens * vision.merged_patches
    seen = patches // max(chunk.num_images, 1)
    pairs = patches * (
        vision.full_blocks * seen + vision.window_blocks * min(seen, vision.window_patches)
    )
    return 2 * patches * vision.matrix_weights + 4 * pairs * vision.width


def estimate_activations(model: ModelSize, step: StepShape, chunk: ChunkShape) -> int:
    """Return the bytes that the backward pass of a chunk reads, without weights and logits.

    With gradient checkpointing that is the input of each layer alone.
    """
    language, vision, size = model.language, model.vision, step.activation_bytes
    layers = language.layers * (
        language.hidden * size
        if step.is_checkpointed
        else estimate_layer_bytes(model, step, chunk.width)
    )
    last_norm = language.hidden * (_FLOAT + size * language.is_trained)
    head_width = language.query_width // language.heads
    rotary_and_ids = 2 * head_width * size + 16
    targets = chunk.num_targets * language.hidden * size
    merged_width = vision.merged_patches * vision.width
    # Normalised state, input of both matrices, input of the activation between them.
    projector = 4 * merged_width * vision.num_projectors * size * vision.trains_projector
    return (
        chunk.num_tokens * (layers + last_norm + rotary_and_ids)
        + targets
        + chunk.num_image_tokens * projector
    )


def estimate_layer_bytes(model: ModelSize, step: StepShape, width: int) -> int:
    """Return the bytes per token that the backward pass of one layer of the language model reads.

    Args:
        model: The model.
        step: The step.
        width: Tokens of a sequence.
    """
    language, size = model.language, step.activation_bytes
    hidden, intermediate, queries = language.hidden, language.intermediate, language.query_width
    # Gate, its activation, up; queries, keys and values for each head, and the result.
    kept = (3 * intermediate + 4 * queries) * size + language.heads * _FLOAT
    norms = language.normalised_width * _FLOAT  # computed in float32
    if step.keeps_attention:
        kept += language.heads * width * (_FLOAT + size * (size < _FLOAT))
    if language.is_trained:
        return kept + norms + (language.normalised_width + 2 * hidden + intermediate) * size
    per_layer = language.adapter_ranks // language.layers
    inputs = 2 * hidden + intermediate
    if language.adapter_weights and size < _FLOAT:
        # Adapters in float32 cast what they read, each for itself.
        inputs = language.adapter_inputs // language.layers
    return kept + norms + (inputs * bool(language.adapter_weights) + per_layer) * size


def estimate_memory(
    model: ModelSize, step: StepShape, num_devices: int = 1, num_shards: int = 1
) -> StepMemory:
    """Return the memory of a step at its peak.

    Args:
        model: The model.
        step: The step.
        num_devices: Devices that train together.
        num_shards: How many of them share weights, gradients and optimizer states (FSDP).
    """
    total, language, vision = model.total, model.language, model.vision
    size = step.activation_bytes
    hold: Callable[[list[int]], int] = max if step.is_cached else sum
    activations = [estimate_activations(model, step, chunk) for chunk in step.chunks]
    # Logits, softmax in float32, and the gradient of one of them at a time.
    logits = [c.num_targets * language.vocabulary * (size + _FLOAT) for c in step.chunks]
    largest_logits = max(chunk.num_targets for chunk in step.chunks) * language.vocabulary
    table = language.vocabulary * language.hidden * language.weight_bytes * language.trains_rows
    num_held = 1 if step.is_cached else len(step.chunks)
    is_read_again = step.is_cached or step.num_written_tokens > 0
    image_tokens = sum(chunk.num_image_tokens for chunk in step.chunks) * is_read_again
    merged_width = vision.merged_patches * vision.width * vision.num_projectors
    num_sequences = sum(chunk.num_sequences for chunk in step.chunks)
    logits_rows = min(step.num_queries, step.num_logits_rows)
    casts = language.adapter_weights * size * (size < _FLOAT)  # autocast keeps them for the step
    return StepMemory(
        weights=total.weight_bytes // num_shards,
        gradients=total.trainable_bytes // num_shards,
        optimizer=_OPTIMIZER_STATES * total.trainable_bytes // num_shards,
        buckets=total.trainable_bytes * (num_devices > 1 and num_shards == 1),
        activations=hold(activations) + casts,
        logits=hold(logits) + largest_logits * _FLOAT,
        row_copies=(num_held + 1) * table,  # the last is the gradient of one of them
        vision_outputs=image_tokens * merged_width * size,
        contrastive=_FLOAT
        * (
            language.hidden * 2 * (num_sequences + step.num_candidates)
            + 3 * logits_rows * step.num_candidates
        ),
        workspace=max(_estimate_workspace(model, step, chunk) for chunk in step.chunks),
        reserved=_RESERVED_BYTES,
    )


def _estimate_workspace(model: ModelSize, step: StepShape, chunk: ChunkShape) -> int:
    """Return what lives for a moment: a vision block's states, or a layer's gradients."""
    language, vision, size = model.language, model.vision, step.activation_bytes
    patches = chunk.num_image_tokens * vision.merged_patches
    block = patches * ((3 * vision.intermediate + 5 * vision.width) * size + vision.pixel_bytes)
    layer = (3 * language.intermediate + 4 * language.hidden) * size
    if step.is_checkpointed:
        layer += estimate_layer_bytes(model, step, chunk.width)
    return max(block, chunk.num_tokens * layer)
