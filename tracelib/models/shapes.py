"""Architectures by name, and models of them without weights: what a plan needs, no network asked.

The numbers are those of each checkpoint's published `config.json`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from tracelib.assets import resolve_backbone
from tracelib.models.backbone import Attention, Dtype, LoRA, mark_trained
from tracelib.models.backbone_parts import PROJECTOR

_QWEN2_VISION: dict[str, Any] = {"depth": 32, "num_heads": 16, "patch_size": 14}
_QWEN2_5_VISION = {
    **_QWEN2_VISION,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
_QWEN3_VISION: dict[str, Any] = {"num_heads": 16, "patch_size": 16, "num_position_embeddings": 2304}
_ROTARY = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_QWEN3_ROTARY = {
    "rope_type": "default",
    "rope_theta": 5e6,
    "mrope_section": [24, 20, 20],
    "mrope_interleaved": True,
}


def _text(
    hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-6,
    }


_TEXT_3B = _text(2048, 11_008, 36, 16, 2, 151_936)
_TEXT_2B = _text(1536, 8_960, 28, 12, 2, 151_936)
_TEXT_7B = _text(3584, 18_944, 28, 28, 4, 152_064)
_TEXT_QWEN3_4B = _text(2560, 9_728, 36, 32, 8, 151_936)
_TEXT_QWEN3_8B = _text(4096, 12_288, 36, 32, 8, 151_936)
_VISION_QWEN3_4B = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
_VISION_QWEN3_8B = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}

_PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Qwen/Qwen2-VL-2B-Instruct": (
        "qwen2_vl",
        _TEXT_2B | {"rope_parameters": _ROTARY},
        _QWEN2_VISION | {"embed_dim": 1280, "hidden_size": 1536},
        {"tie_word_embeddings": True},
    ),
    "Qwen/Qwen2-VL-7B-Instruct": (
        "qwen2_vl",
        _TEXT_7B | {"rope_parameters": _ROTARY},
        _QWEN2_VISION | {"embed_dim": 1280, "hidden_size": 3584},
        {"tie_word_embeddings": False},
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        _TEXT_3B | {"rope_parameters": _ROTARY},
        _QWEN2_5_VISION | {"out_hidden_size": 2048},
        {"tie_word_embeddings": True},
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl",
        _TEXT_7B | {"rope_parameters": _ROTARY},
        _QWEN2_5_VISION | {"out_hidden_size": 3584},
        {"tie_word_embeddings": False},
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "qwen3_vl",
        _TEXT_QWEN3_4B | {"rope_parameters": _QWEN3_ROTARY, "head_dim": 128},
        _QWEN3_VISION
        | _VISION_QWEN3_4B
        | {"out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17]},
        {"tie_word_embeddings": True},
    ),
    "Qwen/Qwen3-VL-8B-Instruct": (
        "qwen3_vl",
        _TEXT_QWEN3_8B | {"rope_parameters": _QWEN3_ROTARY, "head_dim": 128},
        _QWEN3_VISION
        | _VISION_QWEN3_8B
        | {"out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]},
        {"tie_word_embeddings": False},
    ),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": (
        "smolvlm",
        _text(2048, 8_192, 24, 32, 32, 49_280)
        | {"model_type": "llama", "head_dim": 64, "pad_token_id": 2},
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
        {"tie_word_embeddings": False, "scale_factor": 3, "image_token_id": 49_190},
    ),
}
"""Type, text, vision and the rest of a configuration, by name on the hub."""

PUBLISHED_NAMES = tuple(_PUBLISHED)
_MOST_IMAGE_TOKENS = 16_384
"""The limit of the Qwen models above: 12,845,056 pixels of 28 x 28 a token, or 32 x 32 of more."""


def read_published_config(name: str) -> PretrainedConfig:
    """Return the configuration of a published model from the numbers kept here.

    Raises:
        KeyError: The name is none of `PUBLISHED_NAMES`.
    """
    model_type, text, vision, rest = _PUBLISHED[name]
    # Configurations change what they are given.
    text = copy.deepcopy(text) | {"tie_word_embeddings": rest["tie_word_embeddings"]}
    make: Any = CONFIG_MAPPING[model_type]
    config: PretrainedConfig = make(text_config=text, vision_config=dict(vision), **rest)
    return config


def read_config(backbone: str) -> PretrainedConfig:
    """Return a backbone's configuration: from its folder or the cache, else as published, else hub.

    Args:
        backbone: Folder, hub name, or `embedded`.

    Raises:
        ValueError: None of them has it.
    """
    path = resolve_backbone(backbone)
    config: PretrainedConfig
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return config
    except OSError:
        if backbone in _PUBLISHED:
            return read_published_config(backbone)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return config
    except OSError as error:
        raise ValueError(
            f"backbone {backbone!r} is neither a folder, nor on the hub as far as it can be "
            f"reached, nor one of {', '.join(PUBLISHED_NAMES)} (model.encoder.init_args.backbone)"
        ) from error


def build_random(
    config: PretrainedConfig,
    lora: LoRA | None,
    train_projector: bool,
    dtype: Dtype,
    gradient_checkpointing: bool,
    attention: Attention = "sdpa",
    projector: str = PROJECTOR,
    device: str = "meta",
) -> PreTrainedModel | PeftModel:
    """Build a model from its configuration, frozen and adapted as `load_backbone` does it.

    The embedding token takes the last row of the token table, which is a spare one in all of these
    vocabularies.

    Args:
        config: The architecture.
        lora: Adaptation of the language model; None trains all of it.
        train_projector: Whether the projector is trained.
        dtype: Type of the weights.
        gradient_checkpointing: Recompute activations in the backward pass.
        attention: Who computes attention.
        projector: Regular expression of the full names of the projector's modules.
        device: `meta` makes shapes alone, in a moment; elsewhere weights are random.
    """
    make: Any = AutoModelForImageTextToText.from_config
    with torch.device(device):
        model = make(config, dtype=getattr(torch, dtype), attn_implementation=attention)
        last_row = len(model.get_input_embeddings().weight) - 1
        return mark_trained(
            model, last_row, lora, train_projector, gradient_checkpointing, projector
        )


def find_most_image_tokens(backbone: str, config: PretrainedConfig) -> int:
    """Return the tokens of the largest picture that the backbone's own image processor makes.

    Args:
        backbone: Folder, hub name, or `embedded`.
        config: Its configuration.

    Raises:
        ValueError: Pictures are not cut into patches as Qwen's are.
    """
    vision = config.vision_config.to_dict()
    if "spatial_merge_size" not in vision:
        raise ValueError(
            f"how many tokens a picture of {backbone!r} has is not known: set --image_tokens"
        )
    if backbone in _PUBLISHED:
        return _MOST_IMAGE_TOKENS
    processor = AutoImageProcessor.from_pretrained(
        resolve_backbone(backbone), backend="pil", trust_remote_code=False
    )
    side = vision["patch_size"] * vision["spatial_merge_size"]
    return int(processor.size["longest_edge"] // side**2)
