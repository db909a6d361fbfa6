"""One forward pass: from token sequences with pictures to embeddings, states and logits.

Shapes: B sequences, T tokens, D dimensions, V vocabulary, N target tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from peft import PeftModel
from torch import Tensor, nn

from tracelib.models.backbone import Attention, LoRA, compute_fingerprint, load_backbone
from tracelib.models.pooling import find_emb_position, pool_embedding
from tracelib.types import EncoderInput

_IGNORED_LABEL = -100


@dataclass
class EncoderOutput:
    """What one forward pass gives.

    Args:
        embedding: `[B, D]` states at the read position, not normalised.
        prompt_state: `[B, D]` states of the prompt's last token: gate, router input and direct
            embedding at once.
        lm_logits: `[N, V]` logits that predict the targets.
        lm_targets: `[N]` ids of the targets.
    """

    embedding: Tensor
    prompt_state: Tensor
    lm_logits: Tensor
    lm_targets: Tensor

    @staticmethod
    def join(outputs: Sequence[EncoderOutput]) -> EncoderOutput:
        """Concatenate the outputs of chunks of one batch."""
        fields = (f.name for f in dataclasses.fields(EncoderOutput))
        return EncoderOutput(
            *(torch.cat([getattr(output, name) for output in outputs]) for name in fields)
        )


class Encoder(nn.Module):
    """A backbone that reads records and gives their embeddings.

    Args:
        backbone: Folder or hub name of a Qwen2.5-VL, or `embedded` for the tiny one that ships with
            the package.
        emb_token: The token whose prediction closes a thought, added to the vocabulary.
        read_offset: -1 reads the state before the token (TRACE, section 3.1), 0 the token's own
            (RGE).
        lora: Low-rank adaptation of the language model; null trains all of it.
        train_projector: Whether the vision merger is trained; the vision encoder itself is frozen.
        dtype: Type of the weights.
        gradient_checkpointing: Recompute activations in the backward pass.
        attention: Who computes attention: `sdpa` (torch), `eager`, or `flash_attention_2` where it
            is installed.

    Raises:
        ValueError: The backbone does not load cleanly, or `read_offset` is neither -1 nor 0.

    References:
        TRACE, arXiv 2603.02929, sections 3.1 and 3.3; RGE, arXiv 2511.16150.
    """

    def __init__(
        self,
        backbone: str = "embedded",
        emb_token: str = "<|emb|>",
        read_offset: int = -1,
        lora: LoRA | None = None,
        train_projector: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        gradient_checkpointing: bool = False,
        attention: Attention = "sdpa",
    ) -> None:
        super().__init__()
        if read_offset not in (-1, 0):
            raise ValueError(
                f"read_offset is {read_offset}, allowed are -1 and 0 "
                "(model.encoder.init_args.read_offset)"
            )
        self.read_offset, self.lora = read_offset, lora
        self.model, self.emb_token_id = load_backbone(
            backbone, emb_token, lora, train_projector, dtype, gradient_checkpointing, attention
        )
        self.attention = attention
        rank_zero_info(f"backbone {backbone}: {dtype}, attention by {attention}")
        self.fingerprint = compute_fingerprint(backbone)

    @property
    def _causal_lm(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def hidden_size(self) -> int:
        """Dimensions of an embedding."""
        return int(self._causal_lm.config.get_text_config().hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self._causal_lm.model.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._causal_lm.model.device  # type: ignore[no-any-return]

    def merge_lora(self) -> None:
        """Fold the LoRA updates into the weights: faster, equal up to rounding, and no way back."""
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload()

    def compute_positions(self, inputs: EncoderInput) -> tuple[Tensor, Tensor]:
        """Return rotary positions `[3, B, T]`, and next position minus length `[B, 1]`."""
        if inputs.image_grid_thw is None:
            positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
            return positions.expand(3, -1, -1), positions.new_zeros(len(positions), 1)
        positions, deltas = self._causal_lm.model.get_rope_index(
            inputs.input_ids,
            mm_token_type_ids=inputs.mm_token_type_ids,
            image_grid_thw=inputs.image_grid_thw,
            attention_mask=inputs.attention_mask,
        )
        return positions, deltas

    def run_backbone(self, inputs: EncoderInput, positions: Tensor, cache: Any = None) -> Tensor:
        """Return last-layer states `[B, T, D]`; `cache`, if given, is filled."""
        # Positions are explicit, so the backbone's own remembered rope_deltas can't bite.
        output = self._causal_lm.model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            position_ids=positions,
            pixel_values=inputs.pixel_values,
            image_grid_thw=inputs.image_grid_thw,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def predict_tokens(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., V]` of states `[..., D]`."""
        logits: Tensor = self._causal_lm.lm_head(hidden)
        return logits

    def forward(self, inputs: EncoderInput) -> EncoderOutput:
        """Encode whole sequences, each of which holds its embedding token.

        Raises:
            ValueError: A row has no embedding token, or no target token.
        """
        hidden = self.run_backbone(inputs, self.compute_positions(inputs)[0])
        if inputs.pixel_values is None and self.training:
            # A batch without pictures leaves the projector out of the graph, which DDP takes for an
            # error.
            projector = self._causal_lm.model.visual.merger.parameters()
            hidden = hidden + 0 * sum(p.sum() for p in projector if p.requires_grad)
        emb_position = find_emb_position(
            inputs.input_ids * (inputs.labels != _IGNORED_LABEL), self.emb_token_id
        )
        is_target = inputs.labels[:, 1:] != _IGNORED_LABEL
        rows = torch.arange(len(hidden), device=hidden.device)
        return EncoderOutput(
            embedding=pool_embedding(hidden, emb_position, self.read_offset),
            prompt_state=hidden[rows, is_target.int().argmax(-1)],
            lm_logits=self.predict_tokens(hidden[:, :-1][is_target]),
            lm_targets=inputs.labels[:, 1:][is_target],
        )
