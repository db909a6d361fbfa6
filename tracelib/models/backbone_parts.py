"""Where the parts of a multimodal LLM are, by the conventions of transformers."""

from __future__ import annotations

import re
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

PROJECTOR = r".*\.(merger|deepstack_merger_list|connector|multi_modal_projector)"
"""Full names of what maps vision states to the language model's width, in transformers' models."""


def get_causal_lm(model: PreTrainedModel | PeftModel) -> Any:
    """Return the backbone itself, without the adapter's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def find_decoder_layers(model: PreTrainedModel | PeftModel) -> list[nn.Module]:
    """Return the layers of the language model in their order."""
    return _find_blocks(get_causal_lm(model).get_decoder())


def find_vision_blocks(model: PreTrainedModel | PeftModel) -> list[nn.Module]:
    """Return the transformer blocks of the vision encoder in their order, none of them trained."""
    return _find_blocks(get_causal_lm(model).get_encoder(modality="image"))


def _find_blocks(part: nn.Module) -> list[nn.Module]:
    return [block for block in part.modules() if isinstance(block, GradientCheckpointingLayer)]


def find_read_blocks(model: PreTrainedModel | PeftModel) -> list[int]:
    """Return the numbers of the vision encoder's blocks that the language model is fed from too.

    They are those of Qwen3-VL's DeepStack; the last block, which feeds the projector, is not one.
    """
    config = get_causal_lm(model).get_encoder(modality="image").config.to_dict()
    return list(config.get("deepstack_visual_indexes", ()))


def find_projectors(model: PreTrainedModel | PeftModel, pattern: str) -> list[nn.Module]:
    """Return the modules between vision encoder and language model.

    Args:
        model: The backbone.
        pattern: Regular expression of their full names.

    Raises:
        ValueError: There is none.
    """
    modules = get_causal_lm(model).named_modules()
    found = [module for name, module in modules if re.fullmatch(pattern, name)]
    if not found:
        raise ValueError(
            f"no module of the backbone is called {pattern!r} (model.encoder.init_args.projector)"
        )
    return found


def has_image_positions(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether rotary positions have three axes: time, height and width (M-RoPE)."""
    return "mrope_section" in get_causal_lm(model).config.get_text_config().rope_parameters
