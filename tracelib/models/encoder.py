"""One forward pass: from token sequences with pictures to embeddings, states and logits.

Shapes: B sequences, T tokens, D dimensions, V vocabulary, N target tokens.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tracelib.models.backbone import (
    Attention,
    Dtype,
    LoRA,
    Quantization,
    compute_fingerprint,
    load_backbone,
)
from tracelib.models.backbone_parts import (
    PROJECTOR,
    find_projectors,
    find_read_blocks,
    find_vision_blocks,
    get_causal_lm,
    has_image_positions,
)
from tracelib.models.image_positions import find_image_positions
from tracelib.models.lean_forward import LeanForward, install_lean_forward
from tracelib.models.lean_vision import install_lean_vision
from tracelib.models.pooling import find_emb_position, find_read_position
from tracelib.models.vision_memory import VisionMemory
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
        backbone: Folder or hub name of a model that transformers loads for image and text (tested:
            Qwen2-VL, Qwen2.5-VL, Qwen3-VL, SmolVLM), or `embedded` for the tiny one that ships with
            the package.
        emb_token: The token whose prediction closes a thought, added to the vocabulary.
        read_offset: -1 reads the state before the token (TRACE, section 3.1), 0 the token's own
            (RGE).
        lora: Low-rank adaptation of the language model; null trains all of it.
        train_projector: Whether the projector is trained; the vision encoder itself is frozen.
        dtype: Type of the weights.
        gradient_checkpointing: Recompute activations in the backward pass.
        attention: Who computes attention: `sdpa` (torch), `eager`, or `flash_attention_2` where it
            is installed.
        projector: Regular expression of the full names of the modules between vision encoder and
            language model; the default finds them under transformers' usual names.
        quantization: `8bit` or `4bit` weights of what is frozen, through bitsandbytes; null keeps
            `dtype`.

    Raises:
        ValueError: The backbone does not load cleanly, has no such projector or cannot be
            quantized, or `read_offset` is neither -1 nor 0.

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
        dtype: Dtype = "float32",
        gradient_checkpointing: bool = False,
        attention: Attention = "sdpa",
        projector: str = PROJECTOR,
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__()
        if read_offset not in (-1, 0):
            raise ValueError(
                f"read_offset is {read_offset}, allowed are -1 and 0 "
                "(model.encoder.init_args.read_offset)"
            )
        self.lora, self.fingerprint = lora, compute_fingerprint(backbone)
        model, emb_token_id = load_backbone(
            backbone,
            emb_token,
            lora,
            train_projector,
            dtype,
            gradient_checkpointing,
            attention,
            projector,
            quantization,
        )
        self._take_model(model, emb_token_id, read_offset, attention, projector)
        rank_zero_info(f"backbone {backbone}: {dtype}, attention by {attention}")

    def _take_model(
        self,
        model: PreTrainedModel | PeftModel,
        emb_token_id: int,
        read_offset: int,
        attention: Attention,
        projector: str = PROJECTOR,
    ) -> None:
        """Become the encoder of a model, and find its parts."""
        self.model, self.emb_token_id = model, emb_token_id
        self.read_offset, self.attention = read_offset, attention
        self.projectors = find_projectors(model, projector)
        self._has_image_positions = has_image_positions(model)
        self._vision_memory = VisionMemory(find_vision_blocks(model), find_read_blocks(model))
        self._lean: LeanForward | None = None

    @property
    def _causal_lm(self) -> Any:
        return get_causal_lm(self.model)

    @property
    def hidden_size(self) -> int:
        """Dimensions of an embedding."""
        return int(self._causal_lm.config.get_text_config().hidden_size)

    @property
    def max_positions(self) -> int:
        """Longest sequence that the backbone was made for, in tokens."""
        return int(self._causal_lm.config.get_text_config().max_position_embeddings)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self._causal_lm.model.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._causal_lm.model.device  # type: ignore[no-any-return]

    def prepare_inference(self, lean: bool = True) -> None:
        """Make reading faster, equal up to rounding; there is no way back.

        The LoRA updates are folded into the weights. Best called where the model is to stay.

        Args:
            lean: Whether the backbone is read in fewer operations, where it can be.
        """
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload()
        if self.device.type == "cpu":
            _keep_freed_memory()
        if lean:
            head = self._causal_lm.get_output_embeddings()
            self._lean = install_lean_forward(self._causal_lm.get_decoder(), head)
            install_lean_vision(self._causal_lm.get_encoder(modality="image"))

    def compute_positions(self, inputs: EncoderInput) -> tuple[Tensor, Tensor]:
        """Return rotary positions, and next position minus length `[B, 1]`.

        Positions are `[3, B, T]` where pictures have rows and columns (M-RoPE), else `[B, T]`.
        """
        if inputs.image_grid_thw is None or not self._has_image_positions:
            positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
            return positions, positions.new_zeros(len(positions), 1)
        is_token = inputs.attention_mask.bool()
        is_image = (inputs.mm_token_type_ids == 1) & is_token
        merge_size = self._causal_lm.config.vision_config.spatial_merge_size
        return find_image_positions(is_token, is_image, inputs.image_grid_thw, merge_size)

    def _build_mask(self, inputs: EncoderInput) -> Tensor:
        """Return the padding mask `[B, T]`, or with branches who sees whom, `[B, 1, T, T]`.

        Raises:
            ValueError: The backbone's attention takes no such mask.
        """
        branches = inputs.branches
        if branches is None:
            return inputs.attention_mask
        if self.attention == "flash_attention_2":
            raise ValueError(
                "two texts after one prompt (data.contrastive_rationale self) need a mask that "
                "flash_attention_2 does not take: set model.encoder.init_args.attention to sdpa"
            )
        number = torch.arange(branches.shape[1], device=branches.device)
        is_visible = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
        is_visible &= (number <= number[:, None]) & inputs.attention_mask.bool()[:, None, :]
        is_visible |= torch.eye(len(number), dtype=torch.bool, device=branches.device)  # padding
        if self.attention == "sdpa":
            return is_visible[:, None]
        hidden_score = torch.finfo(self.dtype).min
        return torch.zeros_like(is_visible, dtype=self.dtype).masked_fill(
            ~is_visible, hidden_score
        )[:, None]

    def run_backbone(
        self,
        inputs: EncoderInput,
        positions: Tensor,
        cache: Any = None,
        last: Tensor | None = None,
    ) -> Tensor:
        """Return last-layer states `[B, T, D]`, or those at places `last` `[B]` as `[B, 1, D]`.

        `cache`, if given, is filled.
        """
        patches = inputs.unpack().pixel_values
        read, pictures = self._causal_lm.model, dict[str, Any]()
        if self._has_image_positions and positions.ndim == 2:
            positions = positions.expand(3, -1, -1)
        if inputs.pictures is not None:
            pictures = {"mm_encoder_outputs": {"image": inputs.pictures}}
        elif patches is not None:
            pictures = {"pixel_values": patches, "image_grid_thw": inputs.image_grid_thw}
        elif self._lean is not None:
            read = self._lean
        # Positions are explicit, so the backbone's own remembered rope_deltas can't bite.
        reading = nullcontext() if self._lean is None else self._lean.read_only(last)
        with self._vision_memory.share(inputs.vision_outputs), reading:
            output = read(
                input_ids=inputs.input_ids,
                attention_mask=self._build_mask(inputs),
                position_ids=positions,
                **{name: given for name, given in pictures.items() if given is not None},
                past_key_values=cache,
                use_cache=cache is not None,
            )
        hidden: Tensor = output.last_hidden_state
        if last is not None and self._lean is None:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), last][:, None]
        return hidden

    @property
    def takes_pictures(self) -> bool:
        """Whether the backbone takes pictures that it has read before."""
        taken = inspect.signature(self._causal_lm.model.forward).parameters
        return self._has_image_positions and "mm_encoder_outputs" in taken

    def read_pictures(self, inputs: EncoderInput) -> Any:
        """Return what the backbone makes of the pictures alone, for `EncoderInput.pictures`."""
        return self._causal_lm.model.get_image_features(
            inputs.unpack().pixel_values, inputs.image_grid_thw, return_dict=True
        )

    def predict_tokens(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., V]` of states `[..., D]`."""
        head = self._causal_lm.get_output_embeddings()
        is_plain = torch.is_grad_enabled() or torch.is_autocast_enabled(hidden.device.type)
        if self._lean is not None and self._lean.head is head and not is_plain:
            return self._lean.predict(hidden)
        return head(hidden)  # type: ignore[no-any-return]

    def forward(self, inputs: EncoderInput) -> EncoderOutput:
        """Encode whole sequences, each of which holds its embedding token.

        Raises:
            ValueError: A row has no embedding token, or no target token.
        """
        places = self._find_places(inputs)
        hidden = self._read(inputs)
        is_target = inputs.labels[:, 1:] != _IGNORED_LABEL
        rows = torch.arange(len(hidden), device=hidden.device)
        return EncoderOutput(
            embedding=hidden[rows, places],
            prompt_state=hidden[rows, is_target.int().argmax(-1)],
            lm_logits=self.predict_tokens(hidden[:, :-1][is_target]),
            lm_targets=inputs.labels[:, 1:][is_target],
        )

    def embed(self, inputs: EncoderInput) -> Tensor:
        """Return embeddings `[B, D]` of whole sequences: what `forward` gives, without its logits.

        Raises:
            ValueError: A row has no embedding token.
        """
        return self._read(inputs, self._find_places(inputs))[:, 0]

    def _read(self, inputs: EncoderInput, last: Tensor | None = None) -> Tensor:
        positions = self.compute_positions(inputs)[0]
        if inputs.branches is not None:  # both continuations start where the prompt ends
            skipped = (inputs.branches == 1).sum(-1, keepdim=True)
            positions = positions - skipped * (inputs.branches == 2)
        hidden = self.run_backbone(inputs, positions, last=last)
        if inputs.pixel_values is None and self.training:
            # A batch without pictures leaves the projector out of the graph, which DDP takes for an
            # error.
            weights = (p for module in self.projectors for p in module.parameters())
            hidden = hidden + 0 * sum(p.sum() for p in weights if p.requires_grad)
        return hidden

    def _find_places(self, inputs: EncoderInput) -> Tensor:
        """Return `[B]` where each embedding is read: by the token of its response, not prompt."""
        if inputs.branches is None:
            is_response = inputs.labels != _IGNORED_LABEL
        else:
            is_response = inputs.branches == 2
        position = find_emb_position(inputs.input_ids * is_response, self.emb_token_id)
        if inputs.branches is not None and self.read_offset == -1:
            # What comes before an empty thought is the prompt, not the other text.
            is_text = inputs.branches == 1
            position = position - is_text.sum(-1) * is_text.gather(1, position[:, None] - 1)[:, 0]
        return find_read_position(position, self.read_offset)


def _keep_freed_memory() -> None:
    """Have the C library keep more of what is freed, so that layers find their memory warm.

    glibc gives the end of its heap back beyond twice the largest block that it has seen freed, of
    blocks of up to 32 MiB (mallopt(3)), here 62 MiB, and asking for it again costs more than many
    an operation. The block is not written to; where a user has set the thresholds, they stay.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
