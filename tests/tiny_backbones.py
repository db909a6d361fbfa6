"""Tiny backbones of other families, with random weights: what each one's published folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tracelib.data.pictures import ImageSlot
from tracelib.pretraining.blank import SPECIAL_TOKENS, train_tokenizer

HIDDEN, LAYERS, ROWS = 32, 3, 416
SMOL_SLOT = ImageSlot(4, "<fake_token_around_image><global-img>", "<fake_token_around_image>")
SMOL_SETTINGS = {"do_image_splitting": False, "do_pad": False}
SMOL_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
SMOL_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _describe_text(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> dict[str, Any]:
    return {
        "vocab_size": ROWS,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **settings,
    }


def _describe_rotation(section: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": section}


def _name_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    vocab = tokenizer.get_vocab()
    ids = [int(vocab[token]) for token in SPECIAL_TOKENS]
    names = ("video_token_id", "", "", "vision_start_token_id", "vision_end_token_id")
    return {
        "image_token_id": ids[5],
        **{name: i for name, i in zip(names, ids, strict=False) if name},
    }


def write_qwen2_vl(folder: Path) -> PreTrainedModel:
    """Write tokenizer and image processor of a Qwen2-VL, whose embeddings are not tied."""
    tokenizer = train_tokenizer(seed=0, vocab_size=400, num_texts=200)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28**2, "longest_edge": 64 * 28**2}
    ).save_pretrained(folder)
    config = Qwen2VLConfig(
        text_config=_describe_text(tokenizer, rope_parameters=_describe_rotation([2, 1, 1])),
        vision_config={"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": HIDDEN},
        tie_word_embeddings=False,
        **_name_tokens(tokenizer),
    )
    return Qwen2VLForConditionalGeneration(config)


def write_qwen3_vl(folder: Path) -> PreTrainedModel:
    """Write those of a Qwen3-VL, whose first language layers read an earlier vision block too."""
    tokenizer = train_tokenizer(seed=0, vocab_size=400, num_texts=200)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32**2, "longest_edge": 64 * 32**2}, patch_size=16
    ).save_pretrained(folder)
    config = Qwen3VLConfig(
        text_config=_describe_text(
            tokenizer, head_dim=8, rope_parameters=_describe_rotation([2, 1, 1])
        ),
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True,
        **_name_tokens(tokenizer),
    )
    return Qwen3VLForConditionalGeneration(config)


def write_smolvlm(folder: Path) -> PreTrainedModel:
    """Write those of a SmolVLM: pictures of one size, plain rotary positions, another template."""
    tokenizer = train_tokenizer(seed=0, vocab_size=400, num_texts=200)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(SMOL_TOKENS)}, replace_extra_special_tokens=False
    )
    tokenizer.chat_template = SMOL_TEMPLATE
    tokenizer.save_pretrained(folder)
    SmolVLMImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    ).save_pretrained(folder)
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **_describe_text(tokenizer)},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return SmolVLMForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[Path], PreTrainedModel]] = {
    "qwen2_vl": write_qwen2_vl,
    "qwen3_vl": write_qwen3_vl,
    "smolvlm": write_smolvlm,
}


def write_backbone(family: str, folder: Path) -> Path:
    """Write a tiny backbone; its weights are so large that the last state feels the context."""
    torch.manual_seed(0)
    model = FAMILIES[family](folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1)
    model.save_pretrained(folder)
    return folder
