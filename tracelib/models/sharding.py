"""Spreads an encoder's weights over devices (FSDP2), so that none holds all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tracelib.distributed import shard_module
from tracelib.models.backbone_parts import find_decoder_layers
from tracelib.models.encoder import Encoder
from tracelib.types import IGNORED_LABEL, EncoderInput, TrainBatch


def shard_encoder(encoder: Encoder, mesh: Any) -> None:
    """Shard the language model's layers, each gathered while it runs, and all that is trained.

    What else is frozen (vision encoder, token table) stays whole on every device: it is small, and
    no device waits for another whose chunk has pictures. Trained weights become float32.

    Args:
        encoder: It is changed in place.
        mesh: Devices; with two dimensions, weights are sharded over the second and copied over the
            first.
    """
    layers = find_decoder_layers(encoder.model)
    in_layers = {parameter for layer in layers for parameter in layer.parameters()}
    for parameter in encoder.parameters():
        if parameter.requires_grad:  # a group of sharded weights has one type
            parameter.data = parameter.data.float()
    for layer in layers:
        shard_module(layer, mesh, is_gathered_once=False, ignored=set())
    whole = {p for p in encoder.parameters() if p not in in_layers and not p.requires_grad}
    shard_module(encoder, mesh, is_gathered_once=True, ignored=whole)


def shard_head(head: nn.Module, mesh: Any) -> None:
    """Shard a small trained module that runs beside the encoder."""
    shard_module(head, mesh, is_gathered_once=True, ignored=set())


def join_chunks(batch: TrainBatch) -> TrainBatch:
    """Return a batch of one chunk per side: sharded devices run in step, chunk by chunk.

    Raises:
        ValueError: Its chunks are to be held one at a time.
    """
    if batch.is_cached:
        raise ValueError(
            "weights are sharded over devices, whose numbers of chunks differ: set "
            "data.micro_batch_size and data.micro_batch_tokens to null, or trainer.strategy to ddp"
        )
    return dataclasses.replace(
        batch, query=[_join(batch.query)], candidate=[_join(batch.candidate)]
    )


def _join(chunks: Sequence[EncoderInput]) -> EncoderInput:
    width = max(chunk.input_ids.shape[1] for chunk in chunks)

    def join(rows: Sequence[Tensor], value: int) -> Tensor:
        return torch.cat([pad(row, (0, width - row.shape[1]), value=value) for row in rows])

    patches = [chunk.pixel_values for chunk in chunks if chunk.pixel_values is not None]
    grids = [chunk.image_grid_thw for chunk in chunks if chunk.image_grid_thw is not None]
    return EncoderInput(
        input_ids=join([c.input_ids for c in chunks], int(chunks[0].input_ids[0, 0])),
        attention_mask=join([c.attention_mask for c in chunks], 0),
        mm_token_type_ids=join([c.mm_token_type_ids for c in chunks], 0),
        labels=join([c.labels for c in chunks], IGNORED_LABEL),
        pixel_values=torch.cat(patches) if patches else None,
        image_grid_thw=torch.cat(grids) if grids else None,
        pixel_scale=next((c.pixel_scale for c in chunks if c.pixel_scale is not None), None),
    )
