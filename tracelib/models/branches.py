"""Two texts after one prompt, in one packed sequence: neither sees the other.

Shapes: B sequences of a chunk, T tokens, L tokens of the longest thought.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from tracelib.types import IGNORED_LABEL, EncoderInput

NO_TOKEN = -1
"""Pads thoughts of different lengths."""


def select_rows(inputs: EncoderInput, is_kept: Tensor) -> EncoderInput:
    """Return the sequences that `is_kept` `[B]` marks, with their pictures."""
    if is_kept.all():
        return inputs
    is_kept = is_kept.to(inputs.input_ids.device)
    kept = replace(
        inputs,
        input_ids=inputs.input_ids[is_kept],
        attention_mask=inputs.attention_mask[is_kept],
        mm_token_type_ids=inputs.mm_token_type_ids[is_kept],
        labels=inputs.labels[is_kept],
        branches=None if inputs.branches is None else inputs.branches[is_kept],
        vision_outputs=None,
    )
    if inputs.pixel_values is None:
        return kept
    # Pictures come in the order of the rows, which have as many image tokens as these give.
    grid = inputs.image_grid_thw  # None: all are one size, and an entry each
    num_patches = (
        inputs.labels.new_ones(len(inputs.pixel_values)) if grid is None else grid.prod(-1)
    )
    row_ends = inputs.mm_token_type_ids.sum(-1).cumsum(-1)
    image_ends = num_patches.cumsum(-1) * row_ends[-1] // num_patches.sum()
    is_shown = is_kept[torch.searchsorted(row_ends, image_ends)]
    if not is_shown.any():
        return replace(kept, pixel_values=None, image_grid_thw=None)
    return replace(
        kept,
        pixel_values=inputs.pixel_values[is_shown.repeat_interleave(num_patches)],
        image_grid_thw=None if grid is None else grid[is_shown],
    )


def extract_prompts(inputs: EncoderInput) -> EncoderInput:
    """Return the right-padded prompts of a right-padded chunk whose labels are its responses."""
    is_prompt = inputs.attention_mask.bool() & (inputs.labels == IGNORED_LABEL)
    width = int(is_prompt.sum(-1).max())
    return replace(
        inputs,
        input_ids=inputs.input_ids[:, :width],
        attention_mask=is_prompt[:, :width].long(),
        mm_token_type_ids=inputs.mm_token_type_ids[:, :width],
        labels=torch.full_like(inputs.labels[:, :width], IGNORED_LABEL),
    )


def add_thought_branch(inputs: EncoderInput, thoughts: Tensor, emb_token_id: int) -> EncoderInput:
    """Return `prompt | text <emb> | thought <emb>` for a right-padded chunk `prompt | text <emb>`.

    The text stays the language-modelling target, the thought is none: `branches` is 0 on the
    prompt, 1 on the text and 2 on the thought.

    Args:
        inputs: The chunk, on any device.
        thoughts: `[B, L]` tokens of each row's thought, padded with -1.
        emb_token_id: The token that ends a thought, also an empty one.
    """
    ids = pad(thoughts.to(inputs.input_ids), (0, 1), value=NO_TOKEN)
    num_tokens = (ids != NO_TOKEN).sum(-1, keepdim=True)
    ids = ids.scatter(1, num_tokens, emb_token_id)[:, : int(num_tokens.max()) + 1]
    start = inputs.attention_mask.sum(-1, keepdim=True)
    extra = int((start + num_tokens).max()) + 1 - inputs.input_ids.shape[1]
    columns = torch.arange(ids.shape[1], device=ids.device)
    is_thought = columns <= num_tokens
    rows, places = is_thought.nonzero(as_tuple=True)
    places = places + start[rows, 0]

    def widen(values: Tensor, padding: int, thought: Tensor | int) -> Tensor:
        wide = pad(values, (0, extra), value=padding)
        wide[rows, places] = thought if isinstance(thought, Tensor) else wide.new_tensor(thought)
        return wide

    return replace(
        inputs,
        # What pads is masked, but must not be a picture's token.
        input_ids=widen(inputs.input_ids, emb_token_id, ids[is_thought]),
        attention_mask=widen(inputs.attention_mask, 0, 1),
        mm_token_type_ids=widen(inputs.mm_token_type_ids, 0, 0),
        labels=widen(inputs.labels, IGNORED_LABEL, IGNORED_LABEL),
        branches=widen((inputs.labels != IGNORED_LABEL).long(), 0, 2),
    )
