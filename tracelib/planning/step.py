"""From a recipe and what is assumed of its records to the shape of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from tracelib.data.layout import Layout
from tracelib.models.backbone import LoRA
from tracelib.models.backbone_parts import find_projectors
from tracelib.models.model_sizes import ModelSize, PartSize, count_parameters, measure_model
from tracelib.models.router import DifficultyRouter
from tracelib.models.shapes import build_random, find_most_image_tokens, read_config
from tracelib.models.step_shape import ChunkShape, StepShape

MBEIR_COT_QUERIES = 1_093_753
"""Rows of M-BEIR-CoT: 575,442 with reasoning, 518,311 without (TRACE, section 3.2)."""
_CHAT_TOKENS = 16
_LETTERS_PER_TOKEN = 4
_CHUNKS_PER_SIDE = 2  # of a batch that is held whole
_HALF_PRECISION = ("bfloat16", "float16")


@dataclass(frozen=True)
class Records:
    """What a plan assumes of a recipe's records.

    Args:
        query_tokens: Text tokens of a query's prompt.
        candidate_tokens: Text tokens of a candidate's prompt.
        image_tokens: Tokens of a picture.
        rationale_tokens: Tokens of the annotated text before the embedding token, 0 for none.
        thought_tokens: Tokens that the model writes itself for each query, 0 for none.
        query_images: Pictures per query.
        candidate_images: Pictures per candidate.
        num_queries: Training queries.
    """

    query_tokens: int
    candidate_tokens: int
    image_tokens: int
    rationale_tokens: int
    thought_tokens: int
    query_images: float
    candidate_images: float
    num_queries: int

    @property
    def query_width(self) -> int:
        """Tokens of a query's sequence, with its texts and their embedding tokens."""
        own = self.thought_tokens + 1 if self.thought_tokens else 0
        return self.prompt_width + self.rationale_tokens + 1 + own

    @property
    def prompt_width(self) -> int:
        """Tokens of a query's prompt, pictures included."""
        return self.query_tokens + round(self.query_images * self.image_tokens)

    @property
    def candidate_width(self) -> int:
        """Tokens of a candidate's sequence."""
        return self.candidate_tokens + round(self.candidate_images * self.image_tokens) + 1


def measure_recipe(model: Namespace) -> ModelSize:
    """Return the sizes of the model that the `model` part of a recipe names."""
    encoder = model.encoder.init_args
    lora = None if encoder.lora is None else LoRA(**encoder.lora.as_dict())
    backbone = build_random(
        read_config(encoder.backbone),
        lora,
        encoder.train_projector,
        encoder.dtype,
        encoder.gradient_checkpointing,
        projector=encoder.projector,
    )
    size = measure_model(backbone, find_projectors(backbone, encoder.projector))
    if encoder.quantization is not None:
        size = size.quantize(int(encoder.quantization.removesuffix("bit")))
    router = PartSize()
    if model.router_weight > 0:
        router = count_parameters(DifficultyRouter(size.language.hidden).parameters())
    size.parts["router"] = router
    return size


def assume_records(recipe: Namespace, given: dict[str, Any]) -> Records:
    """Return what is given of the records, and for the rest the recipe's limits.

    Args:
        recipe: The whole recipe.
        given: Fields of `Records` by name, None where the recipe's limit holds.

    Raises:
        ValueError: A number is below 0.
    """
    model, data = recipe.model, recipe.data
    for name, number in given.items():
        if number is not None and number < 0:
            raise ValueError(f"{name} is {number}, must be at least 0 (--{name})")
    is_self = data.contrastive_rationale == "self"
    limits = {
        "query_tokens": data.max_text_tokens + _estimate_chat_tokens(data.query_template),
        "candidate_tokens": data.max_text_tokens + _estimate_chat_tokens(data.candidate_template),
        "rationale_tokens": 0 if data.rationale == "none" else model.max_rationale_tokens,
        "thought_tokens": model.rollout.max_tokens if is_self else 0,
    }
    if given["image_tokens"] is None:
        limits["image_tokens"] = _find_image_tokens(model.encoder.init_args.backbone, data)
    if given["num_queries"] is None:
        limits["num_queries"] = count_training_queries(data) or MBEIR_COT_QUERIES
    return Records(**{**given, **{k: v for k, v in limits.items() if given.get(k) is None}})


def count_training_queries(data: Namespace) -> int:
    """Return the lines of a recipe's train query files; 0 where they are not at hand."""
    layout = Layout(Path(data.root))
    if data.train_file == "union_up":
        paths = [path for path in [layout.union_up_queries] if path.exists()]
    elif any((layout.root / "query" / "train").glob("mbeir_*_train.jsonl")):
        paths = [layout.query(stem, "train") for stem in layout.find_stems("train")]
    else:
        paths = []
    total = 0
    for path in paths:
        with path.open("rb") as file:
            total += sum(1 for _ in file)
    return total


def _find_image_tokens(backbone: str, data: Namespace) -> int:
    if data.max_image_tokens is not None:
        return int(data.max_image_tokens)
    if data.image_slot is not None:
        return int(data.image_slot.num_tokens)
    return find_most_image_tokens(backbone, read_config(backbone))


def _estimate_chat_tokens(template: Namespace) -> int:
    return _CHAT_TOKENS + len(template.system) // _LETTERS_PER_TOKEN


def count_devices(trainer: Namespace) -> int:
    """Return the devices a recipe asks for; one where it leaves their number open."""
    devices = trainer.devices
    if isinstance(devices, list):
        per_node = len(devices)
    else:
        per_node = int(devices) if str(devices).isdecimal() else 1
    return per_node * int(trainer.num_nodes)


def shape_step(recipe: Namespace, records: Records, num_devices: int) -> StepShape:
    """Return the shape of a recipe's step on one of its devices.

    Raises:
        ValueError: The devices cannot share a batch evenly.
    """
    data, encoder = recipe.data, recipe.model.encoder.init_args
    batch = data.contrastive_batch_size
    if num_devices < 1 or batch % num_devices:
        raise ValueError(
            f"{num_devices} devices cannot share {batch} queries evenly (--num_gpus, or "
            "data.contrastive_batch_size)"
        )
    share = batch // num_devices
    num_candidates = share * (1 + data.num_hard_negatives)
    query = ChunkShape(
        share,
        records.query_width,
        share * (records.rationale_tokens + 1),
        round(share * records.query_images * records.image_tokens),
        round(share * records.query_images),
    )
    candidate = ChunkShape(
        num_candidates,
        records.candidate_width,
        num_candidates,
        round(num_candidates * records.candidate_images * records.image_tokens),
        round(num_candidates * records.candidate_images),
    )
    chunks = [part for side in (candidate, query) for part in _split_side(data, side)]
    precision = str(recipe.trainer.precision or "32-true")
    is_half = encoder.dtype in _HALF_PRECISION or precision.startswith(("bf16", "16"))
    writes = records.thought_tokens > 0
    return StepShape(
        chunks=tuple(chunks),
        num_queries=share,
        num_candidates=num_candidates * num_devices,
        is_cached=data.micro_batch_size is not None or data.micro_batch_tokens is not None,
        is_checkpointed=encoder.gradient_checkpointing,
        activation_bytes=2 if is_half else 4,
        num_written_tokens=share * (records.prompt_width + records.thought_tokens) * writes,
        num_logits_rows=recipe.model.contrastive.init_args.chunk_size,
        keeps_attention=encoder.attention == "eager",
    )


def _split_side(data: Namespace, side: ChunkShape) -> list[ChunkShape]:
    most = side.num_sequences
    if data.micro_batch_size is not None:
        most = min(most, data.micro_batch_size)
    if data.micro_batch_tokens is not None:
        most = min(most, max(1, data.micro_batch_tokens // side.width))
    if data.micro_batch_size is None and data.micro_batch_tokens is None:
        most = -(-most // _CHUNKS_PER_SIDE)
    return side.split(most)
