"""Where a model and its prompts come from: a fitted run, or a Qwen2.5-VL of random weights.

A process of its own can load a source again and read the same prompts. Shape: T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tracelib.fitted_run import is_thinking
from tracelib.models.encoder import Encoder
from tracelib.models.router import DifficultyRouter
from tracelib.models.shapes import read_published_config
from tracelib.recipe import find_runs, load_run
from tracelib.types import EncoderInput

DType = Literal["float32", "bfloat16", "float16"]
EMB_TOKEN_ID = 0
_EMBEDDING_SCALE = 4.0
"""Makes a token's own part of its last state large beside what 36 random layers add."""


@dataclass(frozen=True)
class Source:
    """A loaded model and its queries.

    Args:
        encoder: The model, prepared for inference.
        router: The head, or None.
        max_rationale_tokens: Longest thought.
        pad_token_id: Padding of prompts.
        num_queries: How many queries there are.
        read_prompts: Gives the one-row prompts `[1, T]` of some places.
    """

    encoder: Encoder
    router: DifficultyRouter | None
    max_rationale_tokens: int
    pad_token_id: int
    num_queries: int
    read_prompts: Callable[[Sequence[int]], list[EncoderInput]]


@dataclass(frozen=True)
class RunSource:
    """The test queries of a fitted run.

    Args:
        run: Folder of the run.
        dtype: Type of the weights.
        device: Where they go.
    """

    run: Path
    dtype: DType
    device: str

    def load(self) -> Source:
        """Load the run."""
        module, data, _ = load_run(self.run)
        data.setup("test")
        queries = data.evaluation_sets["test"].queries
        module.encoder.prepare_inference()
        cast_weights(module, self.dtype).to(self.device)

        def read_prompts(places: Sequence[int]) -> list[EncoderInput]:
            turns = [data.renderer.render_prompt(q) for q in queries.take(list(places))]
            return [data.processor([turn], "left") for turn in turns]

        return Source(
            module.encoder,
            module.router,
            module.engine.max_rationale_tokens,
            data.processor.tokenizer.pad_token_id,
            len(queries),
            read_prompts,
        )


def find_thinking_run(runs_folder: Path) -> Path:
    """Return the newest run that was trained on rationales.

    Raises:
        FileNotFoundError: There is none.
    """
    for run in reversed(find_runs(runs_folder)):
        if is_thinking(run):
            return run
    raise FileNotFoundError(f"{runs_folder} holds no run that thinks: name one (--run)")


def cast_weights(module: nn.Module, dtype: DType) -> nn.Module:
    """Change the weights' type in place; buffers, such as rotary frequencies, stay as they are."""
    for weight in module.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))
    return module


@dataclass(frozen=True)
class Sizes:
    """Sizes of the language model of a Qwen2.5-VL."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int


def read_published_sizes(name: str) -> Sizes:
    """Return the sizes of a published model's language model."""
    text = read_published_config(name).get_text_config()
    return Sizes(
        text.hidden_size,
        text.intermediate_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.vocab_size,
    )


SHAPES = {
    "0.1b": Sizes(768, 2048, 12, 12, 2, 32_000),
    "3b": read_published_sizes("Qwen/Qwen2.5-VL-3B-Instruct"),
    "7b": read_published_sizes("Qwen/Qwen2.5-VL-7B-Instruct"),
}


@dataclass(frozen=True)
class CountdownSource:
    """Text queries for a Qwen2.5-VL of random weights that counts down to its embedding token.

    Each row of the vocabulary head is the embedding of the next higher id, so the model writes the
    id below the one it just read, and the prompt's last token sets the length of the thought. All
    else is random, prompts included, and every state depends on all that came before it.

    Args:
        sizes: Sizes of the language model; the vision tower, which no text needs, has one block.
        dtype: Type of the weights.
        device: Where they are made.
        num_queries: Queries; the first `think_share` of them think, the others answer at once.
        think_share: Share of queries that think, 0 .. 1.
        prompt_tokens: Shortest and longest prompt; lengths are equally likely.
        thought_tokens: Shortest and longest thought; lengths are equally likely.
    """

    sizes: Sizes
    dtype: DType
    device: str
    num_queries: int
    think_share: float = 1 / 2
    prompt_tokens: tuple[int, int] = (16, 64)
    thought_tokens: tuple[int, int] = (8, 56)

    def load(self) -> Source:
        """Make the model; equal sources make equal ones."""
        longest = self.thought_tokens[1]
        num_thinking = round(self.think_share * self.num_queries)
        pad_token_id = self.sizes.vocabulary - 1

        def read_prompts(places: Sequence[int]) -> list[EncoderInput]:
            prompts = []
            for place in places:
                rng = random.Random(place)
                length = rng.randint(*self.thought_tokens) if place < num_thinking else 0
                num_tokens = rng.randint(*self.prompt_tokens)
                # Ids above the countdown's and below the special ones.
                ids = [rng.randrange(longest + 2, pad_token_id - 3) for _ in range(num_tokens - 1)]
                prompts.append(build_text_prompt([*ids, length + 1]))
            return prompts

        torch.manual_seed(0)
        with torch.device(self.device):
            model = build_countdown_model(self.sizes, self.dtype)
        encoder = CountdownEncoder(model)
        encoder.prepare_inference()
        return Source(encoder, None, longest, pad_token_id, self.num_queries, read_prompts)


class CountdownEncoder(Encoder):
    """An encoder around a model that was made, not loaded.

    Args:
        model: The model, whose embedding token is `EMB_TOKEN_ID`.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        nn.Module.__init__(self)
        self.lora, self.fingerprint = None, "countdown"
        self._take_model(model.requires_grad_(False), EMB_TOKEN_ID, -1, "sdpa")


def build_countdown_model(sizes: Sizes, dtype: DType) -> Qwen2_5_VLForConditionalGeneration:
    """Return a random model that writes the id below the one it read last."""
    half = sizes.hidden // sizes.heads // 2
    last = sizes.vocabulary - 1  # the padding
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": sizes.vocabulary,
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.intermediate,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.key_value_heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8],
            },
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": sizes.hidden,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=False,
        image_token_id=last - 1,
        video_token_id=last - 2,
        vision_start_token_id=last - 3,
    )
    make: Any = Qwen2_5_VLForConditionalGeneration._from_config
    model: Qwen2_5_VLForConditionalGeneration = make(
        config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding.normal_(std=_EMBEDDING_SCALE)
        model.get_output_embeddings().weight.copy_(embedding.roll(-1, dims=0) / sizes.hidden**0.5)
    return model.eval()


def build_text_prompt(ids: list[int]) -> EncoderInput:
    """Return a one-row prompt without pictures."""
    tokens = torch.tensor([ids])
    return EncoderInput(
        tokens, torch.ones_like(tokens), torch.zeros_like(tokens), torch.full_like(tokens, -100)
    )


def join_prompts(prompts: Sequence[EncoderInput], pad_token_id: int) -> EncoderInput:
    """Return one left-padded batch of one-row prompts."""
    width = max(prompt.input_ids.shape[1] for prompt in prompts)

    def join(name: str, padding: int) -> torch.Tensor:
        rows = [getattr(prompt, name) for prompt in prompts]
        return torch.cat([functional.pad(r, (width - r.shape[1], 0), value=padding) for r in rows])

    pictures = [prompt for prompt in prompts if prompt.pixel_values is not None]
    return EncoderInput(
        join("input_ids", pad_token_id),
        join("attention_mask", 0),
        join("mm_token_type_ids", 0),
        join("labels", -100),
        torch.cat([p.pixel_values for p in pictures]) if pictures else None,  # type: ignore[misc]
        torch.cat([p.image_grid_thw for p in pictures]) if pictures else None,  # type: ignore[misc]
    )
