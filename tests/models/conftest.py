"""An encoder whose adapter is not zero; turns that differ in length, pictures, picture sizes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tracelib.data.collator import ChatProcessor, Turn
from tracelib.models.backbone import LoRA
from tracelib.models.encoder import Encoder
from tracelib.prompts import Template
from tracelib.types import EncoderInput

EMB = "<|emb|>"
ADAPTER = LoRA(rank=4, alpha=8)
SIZES = (None, (28, 28), (84, 56), None, (56, 56), (140, 84), None)
"""Width and height of each turn's picture: none, 1, 2 x 3, 2 x 2 and 3 x 5 merged tokens."""


@pytest.fixture(scope="session")
def processor(tiny_backbone) -> ChatProcessor:
    return ChatProcessor(tiny_backbone, EMB)


@pytest.fixture(scope="session")
def prompts() -> list[Turn]:
    """Prompts up to the generation prompt."""
    rng = random.Random(0)
    words = ("red", "blue", "star", "moon", "swap top row", "copy top left to bottom right")
    turns = []
    for number, size in enumerate(SIZES):
        pixels = bytes(rng.randrange(256) for _ in range(3 * size[0] * size[1])) if size else b""
        images = [Image.frombytes("RGB", size, pixels)] if size else []
        text = " ".join(rng.choice(words) for _ in range(1 + 3 * number % 8))
        turns.append(Turn(Template().build_messages(len(images), "Find it.", text, -1), images))
    return turns


@pytest.fixture(scope="session")
def answered(prompts) -> list[Turn]:
    """The prompts with responses of different lengths, closed by the embedding token."""
    responses = (
        "",
        "red star",
        "blue moon / red heart green circle",
        "",
        "x",
        "1 green heart",
        "a",
    )
    return [replace(t, response=r, end=EMB) for t, r in zip(prompts, responses, strict=True)]


@pytest.fixture(scope="session")
def make_encoder(tiny_backbone) -> Callable[..., Encoder]:
    """Call it for an encoder on the tiny backbone, with random LoRA weights where it has any."""

    def make(lora: LoRA | None = ADAPTER, **settings) -> Encoder:
        torch.manual_seed(0)
        encoder = Encoder(str(tiny_backbone), lora=lora, **settings)
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return encoder.eval()

    return make


@pytest.fixture(scope="session")
def encode_alone(processor) -> Callable[[Encoder, Turn, Sequence[int]], torch.Tensor]:
    """Call it for the embedding of a prompt and its own rationale, by one plain forward pass."""

    def encode(encoder: Encoder, turn: Turn, rationale_ids: Sequence[int]) -> torch.Tensor:
        prompt = processor([replace(turn, response=None, end="")])
        written = torch.tensor([[*rationale_ids, encoder.emb_token_id]])
        no_labels = torch.full_like(prompt.input_ids, -100)
        with torch.no_grad():
            return encoder(
                EncoderInput(
                    input_ids=torch.cat([prompt.input_ids, written], 1),
                    attention_mask=torch.ones(
                        1, prompt.input_ids.shape[1] + written.shape[1]
                    ).long(),
                    mm_token_type_ids=torch.cat([prompt.mm_token_type_ids, 0 * written], 1),
                    labels=torch.cat([no_labels, written], 1),
                    pixel_values=prompt.pixel_values,
                    image_grid_thw=prompt.image_grid_thw,
                )
            ).embedding[0]

    return encode
