"""The language model of a multimodal LLM as a model of its own, which needs no picture code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from tracelib.assets import resolve_backbone

_FAMILIES = ("qwen2_vl", "qwen2_5_vl")
_SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def save_text_model(backbone: str, folder: Path) -> None:
    """Save the language model of a Qwen2-VL or Qwen2.5-VL as a Llama, with tokenizer and template.

    Rotary positions of a text are the same with and without rows and columns, so both models are
    one function of a text. A Llama, since transformers reads any Qwen2's tokenizer as Qwen's own,
    which cuts numbers otherwise than the embedded one; it has one more bias, which is 0.

    Args:
        backbone: Folder or hub name, or `embedded`.
        folder: Where to.

    Raises:
        ValueError: The backbone is of another family, or has sliding windows.
    """
    path = resolve_backbone(backbone)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        path, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    source, family = loaded.config.get_text_config(), loaded.config.model_type
    if family not in _FAMILIES:
        raise ValueError(
            f"backbone {backbone!r} is a {family}; a language model can be taken out of "
            f"{' and '.join(_FAMILIES)}"
        )
    if set(source.layer_types) != {"full_attention"}:
        raise ValueError(
            f"backbone {backbone!r} has layers of {sorted(set(source.layer_types))}; a language "
            "model can be taken out where all are of full_attention"
        )
    config = LlamaConfig(
        **{name: getattr(source, name) for name in _SHARED_FIELDS},
        rope_parameters={k: v for k, v in source.rope_parameters.items() if k != "mrope_section"},
        tie_word_embeddings=loaded.config.tie_word_embeddings,
        attention_bias=True,
    )
    model = LlamaForCausalLM(config).to(loaded.dtype)
    weights = loaded.model.language_model.state_dict()
    for name, bias in model.model.state_dict().items():
        if name.endswith("o_proj.bias"):
            weights[name] = torch.zeros_like(bias)
    model.model.load_state_dict(weights)
    model.lm_head.load_state_dict(loaded.lm_head.state_dict())
    model.generation_config = GenerationConfig(
        do_sample=True,  # else a server ignores the temperature; one of 0 is greedy all the same
        temperature=1.0,
        top_k=0,  # of all tokens, as the probabilities are
        top_p=1.0,
        eos_token_id=loaded.generation_config.eos_token_id,
        pad_token_id=loaded.generation_config.pad_token_id,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path, trust_remote_code=False).save_pretrained(folder)
