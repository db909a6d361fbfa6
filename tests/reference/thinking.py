"""One query alone thinks greedily, by the library's own forward pass, positions and caches."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from tracelib.models.encoder import Encoder
from tracelib.types import EncoderInput


@torch.no_grad()
def think_alone(
    encoder: Encoder, prompt: EncoderInput, limit: int, cache: Cache | None
) -> tuple[list[int], bool, Tensor]:
    """Return rationale, whether it was cut, and embedding `[D]`; no cache reads all anew."""
    backbone, emb = encoder.model.get_base_model().model, encoder.emb_token_id
    written: list[int] = []

    def read(tokens: list[int]) -> tuple[Tensor, int]:
        if cache is None or not tokens:
            backbone.rope_deltas = None  # those of another query
            ids = torch.cat([prompt.input_ids, torch.tensor([tokens]).long()], 1)
            types = torch.nn.functional.pad(prompt.mm_token_type_ids, (0, len(tokens)))
            seen = {
                "mm_token_type_ids": types,
                "pixel_values": prompt.pixel_values,
                "image_grid_thw": prompt.image_grid_thw,
            }
        else:
            ids, seen = torch.tensor([tokens[-1:]]), {}
        use = {"past_key_values": cache, "use_cache": cache is not None}
        output = encoder.model(input_ids=ids, output_hidden_states=True, **seen, **use)
        if not tokens:
            output.logits[0, -1, emb] = -torch.inf  # at least one token is written
        return output.hidden_states[-1][0, -1], int(output.logits[0, -1].argmax())

    state, token = read([])
    while token != emb and len(written) < limit:
        written.append(token)
        state, token = read(written)
    if encoder.read_offset == 0:
        state, _ = read([*written, emb])
    return written, token != emb, state
