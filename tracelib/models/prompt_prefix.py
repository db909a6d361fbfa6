"""What all prompts of a batch begin with, such as the system prompt, is read once for all of them.

Shapes: B prompts, T tokens, L of them in the prefix, W after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tracelib.models.encoder import Encoder
from tracelib.types import EncoderInput

_LEAST_PROMPTS = 4
_LEAST_TOKENS = 8  # fewer are not worth a pass of their own


def find_common_prefix(prompts: Sequence[EncoderInput]) -> Tensor:
    """Return `[L]` the ids that all prompts begin with; L is 0 where they are not worth a pass.

    The prefix ends before the first picture, and leaves every prompt a token at least.

    Args:
        prompts: Prompts in parts, padded on either side.
    """
    if sum(len(part.input_ids) for part in prompts) < _LEAST_PROMPTS:
        return torch.empty(0, dtype=torch.long)
    prefix: Tensor | None = None
    for part in prompts:
        lengths = part.attention_mask.sum(-1)
        aligned = drop_prefix(part, part.input_ids, 0)[0]
        ids = aligned.input_ids
        prefix = ids[0] if prefix is None else prefix
        width = min(len(prefix), ids.shape[1], int(lengths.min()) - 1)
        is_shared = ids[:, :width] == prefix[:width]
        is_shared &= aligned.mm_token_type_ids[:, :width] == 0
        prefix = prefix[: int(is_shared.all(0).int().cumprod(0).sum())]
    assert prefix is not None
    return prefix if len(prefix) >= _LEAST_TOKENS else prefix[:0]


def drop_prefix(
    prompts: EncoderInput, positions: Tensor, num_tokens: int
) -> tuple[EncoderInput, Tensor]:
    """Return prompts and positions without their first tokens, padded on the right.

    Args:
        prompts: Prompts `[B, T]`, padded on either side.
        positions: `[..., B, T]` their rotary positions.
        num_tokens: L.

    Returns:
        Tokens `[B, W]` with the mask `[B, L + W]` of a cache that holds the prefix, and positions
        `[..., B, W]`.
    """
    mask = prompts.attention_mask
    lengths = mask.sum(-1, keepdim=True)
    number = torch.arange(int(lengths.max()) - num_tokens, device=mask.device)
    columns = mask.argmax(-1, keepdim=True) + num_tokens + number
    columns = columns.clamp(max=mask.shape[1] - 1)
    is_token = (number < lengths - num_tokens).to(mask)
    shortened = dataclasses.replace(
        prompts,  # behind a prompt comes its padding, or its last token again
        input_ids=prompts.input_ids.gather(1, columns),
        attention_mask=torch.cat([mask.new_ones(len(mask), num_tokens), is_token], dim=1),
        mm_token_type_ids=prompts.mm_token_type_ids.gather(1, columns),
        labels=prompts.labels.gather(1, columns),
    )
    return shortened, positions.gather(-1, columns.expand(*positions.shape[:-1], -1))


def read_prefix(encoder: Encoder, prefix: Tensor) -> DynamicCache:
    """Return the keys and values of a prefix `[L]`, of one row."""
    cache = DynamicCache()
    if len(prefix):
        ids = prefix[None].to(encoder.device)
        nothing = torch.zeros_like(ids)
        inputs = EncoderInput(ids, torch.ones_like(ids), nothing, nothing)
        encoder.run_backbone(inputs, encoder.compute_positions(inputs)[0], cache)
    return cache


def repeat_cache(cache: DynamicCache, num_rows: int) -> DynamicCache:
    """Return a cache of so many equal rows, to be written behind."""
    repeated = DynamicCache()
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        keys, values = (
            tensor.expand(num_rows, *tensor.shape[1:]) for tensor in (layer.keys, layer.values)
        )
        repeated.update(keys, values, number)
    return repeated
