"""The three loops that the engine is measured against, over the same model and the same prompts.

All take a model whose LoRA updates are merged, and left-padded prompts, and read them by
transformers' own layers. Shapes: B queries, T tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tracelib.models.encoder import Encoder
from tracelib.types import EncoderInput


@contextmanager
def use_own_layers(model: Any) -> Iterator[None]:
    """Until it closes, have a prepared model read by transformers' own forward passes."""
    parts = (model.get_decoder(), model.get_encoder(modality="image"))
    lean = [(part, vars(part).pop("forward")) for part in parts if "forward" in vars(part)]
    try:
        yield
    finally:
        for part, forward in lean:
            part.forward = forward


@dataclass(frozen=True)
class DecodeLoop:
    """A loop around transformers' `generate`, greedy and with its usual cache.

    Args:
        encoder: The model.
        max_rationale_tokens: Longest thought; the embedding token then counts as written.
        pad_token_id: What `generate` writes behind a row that has ended.
    """

    encoder: Encoder
    max_rationale_tokens: int
    pad_token_id: int

    @torch.no_grad()
    def embed_alone(self, prompt: EncoderInput) -> tuple[list[int], Tensor]:
        """Return the thought and the state `[D]` of one query, as RGE's evaluation does.

        `generate` runs until the embedding token, then one more forward pass on the cache gives the
        state wanted: that of the embedding token (read offset 0), or of the token before it (-1),
        which the cache holds already and is dropped from it. This pass leaves out the vocabulary.
        """
        model: Any = self.encoder.model
        with use_own_layers(model):
            return self._embed_alone(model, prompt.to(self.encoder.device))

    def _embed_alone(self, model: Any, prompt: EncoderInput) -> tuple[list[int], Tensor]:
        output = model.generate(**self._build_arguments(prompt, self.max_rationale_tokens))
        written = output.sequences[0, prompt.input_ids.shape[1] :].tolist()
        thought = written[:-1] if written[-1] == self.encoder.emb_token_id else written
        rows = [*prompt.input_ids[0].tolist(), *thought, self.encoder.emb_token_id]
        stop = len(rows) + self.encoder.read_offset
        cache = output.past_key_values
        start = min(cache.get_seq_length(), stop - 1)
        if start < cache.get_seq_length():
            cache.crop(start - cache.get_seq_length())
        tokens = torch.tensor([rows[start:stop]], device=prompt.input_ids.device)
        states = model.model(input_ids=tokens, past_key_values=cache, use_cache=True)[0]
        return thought, states[0, -1].float().cpu()

    @torch.no_grad()
    def embed_batch(self, prompts: EncoderInput) -> tuple[list[list[int]], Tensor]:
        """Return thoughts and states `[B, D]` of a padded batch, as UME-R1's evaluation does.

        `generate` keeps the hidden states of all layers and steps, from which the state at each
        row's read position is taken. All rows wait for the longest.
        """
        prompts = prompts.to(self.encoder.device)
        model: Any = self.encoder.model
        with use_own_layers(model):
            return self._embed_batch(model, prompts)

    def _embed_batch(self, model: Any, prompts: EncoderInput) -> tuple[list[list[int]], Tensor]:
        arguments = self._build_arguments(prompts, self.max_rationale_tokens + 1)
        output = model.generate(**arguments, output_hidden_states=True)
        written = output.sequences[:, prompts.input_ids.shape[1] :]
        is_emb = written == self.encoder.emb_token_id
        lengths = torch.where(is_emb.any(1), is_emb.int().argmax(1), self.max_rationale_tokens)
        steps = [layers[-1][:, -1] for layers in output.hidden_states]
        if self.encoder.read_offset == 0:
            steps = [*steps[1:], self._read_emb_token(prompts, output)]
        rows = torch.arange(len(lengths), device=lengths.device)
        states = torch.stack(steps)[lengths, rows].float().cpu()
        sizes = lengths.tolist()
        return [w[:n] for w, n in zip(written.tolist(), sizes, strict=True)], states

    @torch.no_grad()
    def embed_compacted(self, prompts: EncoderInput) -> tuple[list[list[int]], Tensor]:
        """Return thoughts and states `[B, D]` of a padded batch, as a short script would get them.

        One prefill embeds what answers at once; the rest is decoded together, and each row leaves
        the cache when it is done. None takes its place, so that the last ones are read alone.
        """
        prompts = prompts.to(self.encoder.device)
        model: Any = self.encoder.model
        with use_own_layers(model):
            return self._embed_compacted(model, prompts)

    def _embed_compacted(self, model: Any, prompts: EncoderInput) -> tuple[list[list[int]], Tensor]:
        emb, offset = self.encoder.emb_token_id, self.encoder.read_offset
        positions, step = self.encoder.compute_positions(prompts)
        cache, mask = DynamicCache(config=model.config), prompts.attention_mask
        pictures = {"pixel_values": prompts.pixel_values, "image_grid_thw": prompts.image_grid_thw}
        states = model.model(
            input_ids=prompts.input_ids,
            attention_mask=mask,
            position_ids=positions.expand(3, -1, -1) if positions.ndim == 2 else positions,
            past_key_values=cache,
            **{name: value for name, value in pictures.items() if value is not None},
        )[0][:, -1]
        tokens = model.lm_head(states).argmax(-1)
        found, rows = states.clone(), torch.arange(len(states), device=states.device)
        thoughts: list[list[int]] = [[] for _ in states]
        is_done = (tokens == emb) & (offset == -1)
        while not is_done.all():
            if is_done.any():
                stay = (~is_done).nonzero().flatten()
                cache.batch_select_indices(stay)
                rows, tokens, mask, step = rows[stay], tokens[stay], mask[stay], step[stay]
            was_emb = tokens == emb
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                thoughts[row] += [token] * (token != emb)
            mask = torch.cat([mask, torch.ones_like(rows)[:, None]], dim=1)
            states = model.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=(mask.sum(-1, keepdim=True) - 1 + step).expand(3, -1, -1),
                past_key_values=cache,
            )[0][:, -1]
            tokens = model.lm_head(states).argmax(-1)
            is_full = [len(thoughts[row]) == self.max_rationale_tokens for row in rows.tolist()]
            tokens[torch.tensor(is_full, device=tokens.device)] = emb
            is_done = tokens == emb if offset == -1 else was_emb
            found[rows[is_done]] = states[is_done]
        return thoughts, found.float().cpu()

    @torch.no_grad()
    def write_thoughts(self, prompts: EncoderInput) -> Tensor:
        """Return what plain `generate` gives on a padded batch: token ids, prompts included."""
        prompts = prompts.to(self.encoder.device)
        model: Any = self.encoder.model
        with use_own_layers(model):
            output = model.generate(**self._build_arguments(prompts, self.max_rationale_tokens))
        sequences: Tensor = output.sequences
        return sequences

    def _build_arguments(self, prompts: EncoderInput, max_new_tokens: int) -> dict[str, Any]:
        values = {name: value for name, value in vars(prompts).items() if value is not None}
        del values["labels"]
        return values | {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "use_cache": True,
            "eos_token_id": self.encoder.emb_token_id,
            "pad_token_id": self.pad_token_id,
            "return_dict_in_generate": True,
        }

    def _read_emb_token(self, prompts: EncoderInput, output: Any) -> Tensor:
        """Return `[B, D]` the states of an embedding token put behind what was read."""
        model: Any = self.encoder.model
        cache = output.past_key_values
        num_rows, width = prompts.input_ids.shape
        num_read = cache.get_seq_length() - width
        mask = torch.cat(
            [prompts.attention_mask, prompts.attention_mask.new_ones(num_rows, num_read + 1)], 1
        )
        positions = mask.sum(-1, keepdim=True) - 1 + model.model.rope_deltas
        states: Tensor = model.model(
            input_ids=torch.full_like(prompts.input_ids[:, :1], self.encoder.emb_token_id),
            attention_mask=mask,
            position_ids=positions.expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        )[0]
        return states[:, -1]
