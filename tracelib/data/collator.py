"""From chat messages and pictures to padded token sequences.

No VLM processor class is used: those demand torchvision, tokenizer and image processor do not.
Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL.Image import Image
from transformers import AutoImageProcessor, AutoTokenizer

from tracelib.assets import resolve_backbone
from tracelib.prompts import Messages
from tracelib.types import EncoderInput

IGNORED_LABEL = -100
_IMAGE_TOKEN = "<|image_pad|>"


@dataclass(frozen=True)
class Turn:
    """One sequence: a prompt, its pictures, and what the assistant says.

    Args:
        messages: Chat messages of the prompt.
        images: One picture per image slot of the messages.
        response: The assistant's text; None ends the sequence at the generation prompt.
        end: Token that ends the response, also when it is empty; `""` for none.
    """

    messages: Messages
    images: Sequence[Image]
    response: str | None = None
    end: str = ""


class ChatProcessor:
    """Tokenizes turns, prepares their pictures and pads them to one batch.

    Args:
        backbone: Folder or hub name that holds tokenizer and image processor, or `embedded`.
        emb_token: The token whose prediction ends a thought; added to the tokenizer when it is not
            there.
        min_pixels: Smallest picture after resizing, in pixels; None keeps the backbone's own.
        max_pixels: Largest picture after resizing, in pixels; None keeps the backbone's own.

    Raises:
        ValueError: The tokenizer has no chat template, or lacks the backbone's vision tokens.
    """

    def __init__(
        self,
        backbone: str | Path,
        emb_token: str = "<|emb|>",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        folder = resolve_backbone(str(backbone))
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of backbone {str(backbone)!r} has no chat template (data.backbone)"
            )
        if emb_token not in self.tokenizer.get_vocab():
            self.tokenizer.add_special_tokens(
                {"additional_special_tokens": [emb_token]}, replace_extra_special_tokens=False
            )
        vocab = self.tokenizer.get_vocab()
        self.emb_token_id = int(vocab[emb_token])
        if _IMAGE_TOKEN not in vocab:
            raise ValueError(
                f"the tokenizer of backbone {str(backbone)!r} has no {_IMAGE_TOKEN} (data.backbone)"
            )
        self.image_token_id = int(vocab[_IMAGE_TOKEN])
        self.image_processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False
        )
        size = dict(self.image_processor.size)
        size["shortest_edge"] = min_pixels or size["shortest_edge"]
        size["longest_edge"] = max_pixels or size["longest_edge"]
        self.image_processor.size = size

    def compute_digest(self) -> str:
        """Return a digest of all that decides which tokens and patches a record becomes."""
        parts = (
            self.tokenizer.backend_tokenizer.to_str(),
            self.tokenizer.chat_template,
            self.image_processor.to_json_string(),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def __call__(
        self, turns: Sequence[Turn], padding_side: Literal["left", "right"] = "right"
    ) -> EncoderInput:
        """Turn sequences into a padded batch whose labels are the responses' tokens.

        Prompt and response are tokenized apart, so a training sequence equals its prompt plus
        generated tokens.
        """
        images = [image for turn in turns for image in turn.images]
        pictures = self.image_processor(images=images, return_tensors="pt") if images else {}
        grids = iter(pictures["image_grid_thw"].tolist() if images else [])
        merge = self.image_processor.merge_size**2
        rows, starts = [], []
        for turn in turns:
            prompt = self._tokenize_prompt(
                turn, [t * h * w // merge for t, h, w in (next(grids) for _ in turn.images)]
            )
            text = (turn.response or "") + turn.end
            rows.append(
                prompt + (self.tokenizer.encode(text, add_special_tokens=False) if text else [])
            )
            starts.append(len(prompt))
        width = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full_like(input_ids, IGNORED_LABEL)
        attention_mask = torch.zeros_like(input_ids)
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            shift = width - len(row) if padding_side == "left" else 0
            ids = torch.tensor(row)
            input_ids[i, shift : shift + len(row)] = ids
            attention_mask[i, shift : shift + len(row)] = 1
            labels[i, shift + start : shift + len(row)] = ids[start:]
        return EncoderInput(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_token_type_ids=(input_ids == self.image_token_id).long(),
            labels=labels,
            pixel_values=pictures.get("pixel_values"),
            image_grid_thw=pictures.get("image_grid_thw"),
        )

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return a text cut to at most `max_tokens` tokens."""
        if len(text) <= max_tokens:
            return text
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return text if len(ids) <= max_tokens else str(self.tokenizer.decode(ids[:max_tokens]))

    def _tokenize_prompt(self, turn: Turn, image_tokens: list[int]) -> list[int]:
        """Render the chat template and expand each image slot to its number of merged patches."""
        text = self.tokenizer.apply_chat_template(
            turn.messages, tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = []
        remaining = iter(image_tokens)
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            ids.extend([token] * (next(remaining) if token == self.image_token_id else 1))
        return ids
