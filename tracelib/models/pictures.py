"""Small pictures of several parts of a batch are read at once, for a pass has a cost of its own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tracelib.models.encoder import Encoder
from tracelib.types import EncoderInput

_MOST_PATCHES = 2048  # more gain little, and take memory


def read_pictures(encoder: Encoder, parts: Sequence[EncoderInput]) -> Iterator[EncoderInput]:
    """Yield the parts on the encoder's device, with the pictures of small ones read.

    Args:
        encoder: It reads them, with its vision encoder and projector.
        parts: Prompts in parts, in any memory.
    """
    # what a pass is to leave for later ones is its own
    is_apart = not encoder.takes_pictures or any(p.vision_outputs is not None for p in parts)
    most, group, num_patches = 0 if is_apart else _MOST_PATCHES, list[EncoderInput](), 0
    for part in parts:
        num_new = 0 if part.pixel_values is None else len(part.pixel_values)
        if group and num_patches + num_new > most:
            yield from _read_group(encoder, group)
            group, num_patches = [], 0
        group.append(part)
        num_patches += num_new
    yield from _read_group(encoder, group)


def _read_group(encoder: Encoder, parts: Sequence[EncoderInput]) -> Iterator[EncoderInput]:
    """Yield parts, their pictures read if more than one has any to read."""
    seen = [part.to(encoder.device).unpack() for part in parts if part.pixel_values is not None]
    if len(seen) < 2:
        yield from (part.to(encoder.device) for part in parts)
        return
    patches, grids = (
        torch.cat([getattr(part, name) for part in seen])
        for name in ("pixel_values", "image_grid_thw")
    )
    whole = dataclasses.replace(seen[0], pixel_values=patches, image_grid_thw=grids)
    output, first = encoder.read_pictures(whole), 0
    for part in parts:
        if part.pixel_values is None or part.image_grid_thw is None:
            yield part.to(encoder.device)
            continue
        stop = first + len(part.image_grid_thw)
        pictures = _select_pictures(output, slice(first, stop))
        read = dataclasses.replace(part, pixel_values=None, pixel_scale=None, pictures=pictures)
        yield read.to(encoder.device)
        first = stop


def _select_pictures(output: Any, some: slice) -> Any:
    """Return what a vision encoder gave of some pictures; it gives lists with one value of each."""
    chosen = copy.copy(output)
    chosen.pooler_output = output.pooler_output[some]
    if getattr(output, "deepstack_features", None):
        chosen.deepstack_features = [states[some] for states in output.deepstack_features]
    return chosen
