"""Counts the weights of a model by part, and reads off the widths that a step's cost depends on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tracelib.models.backbone_parts import (
    find_decoder_layers,
    find_read_blocks,
    find_vision_blocks,
    get_causal_lm,
)

PARTS = ("vision", "projector", "language_model", "lora", "embedding_rows")


@dataclass(frozen=True)
class PartSize:
    """Weights of a part of the model.

    Args:
        parameters: How many.
        trainable: How many of them are trained.
        weight_bytes: Memory of all.
        trainable_bytes: Memory of the trained.
    """

    parameters: int = 0
    trainable: int = 0
    weight_bytes: int = 0
    trainable_bytes: int = 0

    def __add__(self, other: PartSize) -> PartSize:
        """Return both together.

        >>> PartSize(1, 1, 4, 4) + PartSize(2, 0, 8, 0)
        PartSize(parameters=3, trainable=1, weight_bytes=12, trainable_bytes=4)
        """
        return PartSize(
            self.parameters + other.parameters,
            self.trainable + other.trainable,
            self.weight_bytes + other.weight_bytes,
            self.trainable_bytes + other.trainable_bytes,
        )


@dataclass(frozen=True)
class LanguageSize:
    """Widths of the language model.

    Args:
        hidden: Width of a state, and of an embedding.
        intermediate: Width inside the MLP.
        query_width: Width of a layer's queries, over all heads.
        heads: Attention heads.
        layers: Layers.
        vocabulary: Rows of the token table.
        matrix_weights: Weights of all matrices in the layers, without adapters.
        adapter_weights: Weights of the adapters.
        adapter_ranks: Sum of the ranks of all adapters.
        adapter_inputs: Sum of the input widths of all adapters.
        normalised_width: Width of what a layer normalises: twice `hidden`, more with q and k norms.
        is_trained: Whether the matrices themselves are trained.
        trains_rows: Whether single rows of token table and head are; peft then copies both whole.
        weight_bytes: Bytes of a weight of the matrices.
    """

    hidden: int
    intermediate: int
    query_width: int
    heads: int
    layers: int
    vocabulary: int
    matrix_weights: int
    adapter_weights: int
    adapter_ranks: int
    adapter_inputs: int
    normalised_width: int
    is_trained: bool
    trains_rows: bool
    weight_bytes: int


@dataclass(frozen=True)
class VisionSize:
    """Widths of the vision encoder and the projector.

    Args:
        width: Width of a patch's state.
        intermediate: Width inside the MLP.
        full_blocks: Blocks in which each patch sees its whole picture.
        window_blocks: Blocks in which it sees a window.
        window_patches: Patches of a window.
        matrix_weights: Weights of all matrices, without the projector's.
        projector_weights: Weights of the projector's matrices.
        num_projectors: How many states of a patch the projector reads.
        merged_patches: Patches that make one image token.
        pixel_bytes: Memory of a patch's pixels.
        trains_projector: Whether the projector is trained.
    """

    width: int
    intermediate: int
    full_blocks: int
    window_blocks: int
    window_patches: int
    matrix_weights: int
    projector_weights: int
    num_projectors: int
    merged_patches: int
    pixel_bytes: int
    trains_projector: bool


@dataclass(frozen=True)
class ModelSize:
    """All of a model's sizes.

    Args:
        parts: Weights by part, each name of `PARTS`; a router is added as `router` by who has one.
        language: Of the language model.
        vision: Of the vision encoder and the projector.
    """

    parts: dict[str, PartSize]
    language: LanguageSize
    vision: VisionSize

    @property
    def total(self) -> PartSize:
        """All parts together."""
        return sum(self.parts.values(), PartSize())

    def quantize(self, bits: int) -> ModelSize:
        """Return the sizes with matrices of vision encoder and language model of 8 or 4 bits."""
        parts = dict(self.parts)
        counts = {
            "vision": self.vision.matrix_weights,
            "language_model": self.language.matrix_weights,
        }
        for name, count in counts.items():
            saved = count * self.language.weight_bytes - count * bits // 8
            parts[name] = replace(parts[name], weight_bytes=parts[name].weight_bytes - saved)
        return replace(self, parts=parts)


def count_parameters(parameters: Iterable[nn.Parameter]) -> PartSize:
    """Return the size of some weights."""
    found = PartSize()
    for weight in parameters:
        size = weight.numel() * weight.element_size()
        trained = weight.requires_grad
        found += PartSize(weight.numel(), weight.numel() * trained, size, size * trained)
    return found


def measure_model(model: PreTrainedModel | PeftModel, projectors: Sequence[nn.Module]) -> ModelSize:
    """Measure a backbone, frozen and adapted, wherever its weights are, `meta` included.

    Args:
        model: The backbone.
        projectors: What is between its vision encoder and its language model.
    """
    projector = {weight for module in projectors for weight in module.parameters()}
    tower = {*get_causal_lm(model).get_encoder(modality="image").parameters()} - projector
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in PARTS}
    for name, weight in model.named_parameters():
        if "lora_" in name:
            part = "lora"
        elif "trainable_tokens_" in name:
            part = "embedding_rows"
        elif weight in projector:
            part = "projector"
        else:
            part = "vision" if weight in tower else "language_model"
        groups[part].append(weight)
    return ModelSize(
        {name: count_parameters(weights) for name, weights in groups.items()},
        _measure_language(model, groups["embedding_rows"] != []),
        _measure_vision(model, projector, tower),
    )


def _measure_language(model: PreTrainedModel | PeftModel, trains_rows: bool) -> LanguageSize:
    causal_lm = get_causal_lm(model)
    text = causal_lm.config.get_text_config()
    head_width = text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads
    layers = find_decoder_layers(model)
    named = [pair for layer in layers for pair in layer.named_parameters()]
    adapters = [(name, weight) for name, weight in named if "lora_" in name]
    inputs = [weight.shape for name, weight in adapters if "lora_A" in name]
    matrices = [weight for name, weight in named if weight.ndim > 1 and "lora_" not in name]
    has_head_norms = any("q_norm" in name for name, _ in named)
    num_normed = (text.num_attention_heads + text.num_key_value_heads) * has_head_norms
    return LanguageSize(
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query_width=text.num_attention_heads * head_width,
        heads=text.num_attention_heads,
        layers=len(layers),
        vocabulary=len(causal_lm.get_output_embeddings().weight),
        matrix_weights=sum(weight.numel() for weight in matrices),
        adapter_weights=sum(weight.numel() for _, weight in adapters),
        adapter_ranks=sum(shape[0] for shape in inputs),
        adapter_inputs=sum(shape[1] for shape in inputs),
        normalised_width=2 * text.hidden_size + num_normed * head_width,
        is_trained=matrices[0].requires_grad,
        trains_rows=trains_rows,
        weight_bytes=matrices[0].element_size(),
    )


def _measure_vision(
    model: PreTrainedModel | PeftModel, projector: set[nn.Parameter], tower: set[nn.Parameter]
) -> VisionSize:
    whole = get_causal_lm(model).config.to_dict()
    config: dict[str, Any] = whole["vision_config"]
    blocks = find_vision_blocks(model)
    tables = {
        module.weight for module in model.modules() if isinstance(module, nn.Embedding)
    }  # position tables are looked up, not multiplied
    matrices = [weight for weight in tower if weight.ndim > 1 and weight not in tables]
    width = config.get("embed_dim") or config["hidden_size"]
    full = len(config.get("fullatt_block_indexes", blocks))
    merged = config.get("spatial_merge_size") or whole.get("scale_factor", 1)
    window = config.get("window_size", 0) // config["patch_size"]
    pixels = config.get("in_channels", 3) * config.get("temporal_patch_size", 1)
    return VisionSize(
        width=width,
        intermediate=config.get("intermediate_size") or int(width * config["mlp_ratio"]),
        full_blocks=full,
        window_blocks=len(blocks) - full,
        window_patches=window**2,
        matrix_weights=sum(weight.numel() for weight in matrices),
        projector_weights=sum(weight.numel() for weight in projector if weight.ndim > 1),
        num_projectors=1 + len(find_read_blocks(model)),
        merged_patches=merged**2,
        pixel_bytes=4 * pixels * config["patch_size"] ** 2,
        trains_projector=any(weight.requires_grad for weight in projector),
    )
