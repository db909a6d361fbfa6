"""Loads a pretrained multimodal LLM, guards what was loaded, and marks what is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file

from tracelib.assets import resolve_backbone
from tracelib.models.backbone_parts import PROJECTOR, find_projectors

_SAMPLE_BYTES = 1 << 20
_NUM_SAMPLES = 64


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation of the language model (TRACE, table 7).

    Args:
        rank: Rank of each update.
        alpha: Scale numerator; the update is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input, 0 .. 1.
        target_modules: Regular expression of the full names of the linear layers to adapt; the
            default is all of the language model's, as transformers names them.
        dora: Learn the size of each adapted weight's rows apart from their direction (DoRA).
        gaussian_init: Draw the first half of each update from a Gaussian, in place of a uniform
            distribution; the second half is zero either way.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.0
    target_modules: str = r".*(language|text)_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    dora: bool = False
    gaussian_init: bool = False


def compute_fingerprint(backbone: str) -> str:
    """Return 16 hex digits that change with the backbone's configuration or weights.

    Files over 64 MiB are sampled at 64 places, so that a 7B checkpoint takes a second.
    """
    folder = Path(resolve_backbone(backbone))
    if not folder.is_dir():
        folder = Path(str(cached_file(backbone, "config.json"))).parent
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_SAMPLE_BYTES, size // _NUM_SAMPLES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


Attention = Literal["sdpa", "eager", "flash_attention_2"]
"""Who computes attention: torch, plain torch operations, or an installed flash-attn."""
Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]


def load_backbone(
    backbone: str,
    emb_token: str,
    lora: LoRA | None,
    train_projector: bool,
    dtype: Dtype,
    gradient_checkpointing: bool,
    attention: Attention = "sdpa",
    projector: str = PROJECTOR,
    quantization: Quantization | None = None,
) -> tuple[PreTrainedModel | PeftModel, int]:
    """Load a backbone, add the embedding token and freeze all that is not trained.

    Trained are the LoRA updates (all of the language model without `lora`), the projector, and the
    embedding token's row.

    Args:
        backbone: Folder, hub name, or `embedded`.
        emb_token: The token to add; its row starts as the mean of all rows.
        lora: Adaptation of the language model; None trains all of it.
        train_projector: Whether the projector is trained (TRACE trains it).
        dtype: Type of the weights.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        attention: Who computes attention.
        projector: Regular expression of the full names of the projector's modules.
        quantization: Bits of the frozen weights; None keeps `dtype`. Projector and head keep it.

    Returns:
        The model and the embedding token's id.

    Raises:
        ValueError: The backbone lacks expected weights, or has some that its architecture does not
            know; no module is called as `projector` says; quantized weights are to be trained, or
            bitsandbytes is not installed.
    """
    if quantization is not None and lora is None:
        raise ValueError(
            f"quantization {quantization} leaves nothing to train without an adapter: set "
            "model.encoder.init_args.lora"
        )
    path = resolve_backbone(backbone)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        output_loading_info=True,
        trust_remote_code=False,
        use_safetensors=True,
        **({} if quantization is None else _quantize(quantization, dtype, projector)),
    )
    model, info = loaded
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    problems = {kind: sorted(info[kind]) for kind in kinds if info[kind]}
    if problems:
        raise ValueError(
            f"backbone {backbone!r} did not load cleanly (model.encoder.backbone): {problems}"
        )
    emb_token_id = _add_emb_token(model, path, emb_token)
    return mark_trained(
        model, emb_token_id, lora, train_projector, gradient_checkpointing, projector
    ), emb_token_id


def _quantize(quantization: Quantization, dtype: Dtype, projector: str) -> dict[str, Any]:
    """Return how to load weights so that matrices of what is frozen have fewer bits."""
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"quantization {quantization} needs {' and '.join(missing)}: pip install "
            f"{' '.join(missing)}, or set model.encoder.init_args.quantization to null"
        )
    config = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=["lm_head", projector],
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}  # its rank's device is later


def _add_emb_token(model: Any, path: str, emb_token: str) -> int:
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    vocab = tokenizer.get_vocab()
    if emb_token in vocab:
        return int(vocab[emb_token])
    emb_token_id = len(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    if emb_token_id >= rows:
        model.resize_token_embeddings(emb_token_id + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[emb_token_id] = (
                layer.weight[: len(tokenizer)].float().mean(0).to(layer.weight.dtype)
            )
    return emb_token_id


def mark_trained(
    model: Any,
    emb_token_id: int,
    lora: LoRA | None,
    train_projector: bool,
    gradient_checkpointing: bool,
    projector: str = PROJECTOR,
) -> PreTrainedModel | PeftModel:
    """Freeze all of a backbone that is not trained, and add the adapter; see `load_backbone`.

    Raises:
        ValueError: No module is called as `projector` says.
    """
    model.train()  # from_pretrained left it in evaluation mode, where LoRA's dropout is off
    adapted: PreTrainedModel | PeftModel = model
    if lora is None:
        model.requires_grad_(False)
        model.get_decoder().requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)
    else:
        # With tied embeddings peft wraps the head too, so one trained row serves both.
        rows = {"embed_tokens": [emb_token_id]}
        if not model.config.tie_word_embeddings:
            rows["lm_head"] = [emb_token_id]
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            use_dora=lora.dora,
            init_lora_weights="gaussian" if lora.gaussian_init else True,
            trainable_token_indices=rows,
        )
        adapted = get_peft_model(model, config)
    for module in find_projectors(model, projector):
        module.requires_grad_(train_projector)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # transformers has the frozen vision encoder take part in the backward pass otherwise.
        model.disable_input_require_grads()
    return adapted
