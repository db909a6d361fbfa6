"""From chat messages and pictures to padded token sequences.

No VLM processor class is used: those demand torchvision, tokenizer and image processor do not.
Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from tracelib.assets import resolve_backbone
from tracelib.data.pictures import PROBE, ImageSlot, PictureReader
from tracelib.prompts import Messages
from tracelib.types import EncoderInput

IGNORED_LABEL = -100


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


@dataclass(frozen=True)
class TokenizedTurn:
    """One sequence in tokens, not yet padded.

    Args:
        ids: Token ids, each image expanded to one placeholder per merged patch.
        num_prompt_tokens: How many of them are prompt; the rest are targets.
        pixel_values: `[P, F]` patches of its images in order, as `PictureReader.read` gives them,
            or None without images; `[I, ...]` where every image is one size.
        image_grid_thw: `[I, 3]` patches per image (time, height, width), or None without images or
            where every image is one size.
    """

    ids: list[int]
    num_prompt_tokens: int
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None


class ChatProcessor:
    """Tokenizes turns, prepares their pictures and pads them to one batch.

    Args:
        backbone: Folder or hub name that holds tokenizer and image processor, or `embedded`.
        emb_token: The token whose prediction ends a thought; added to the tokenizer when it is not
            there.
        min_image_tokens: Fewest image tokens of a picture, unless its share of `max_image_tokens`
            is less; None keeps the backbone's own.
        max_image_tokens: Most image tokens of a record, shared evenly by its pictures; None keeps
            the backbone's own limit for each. A picture far longer than wide may need more, and so
            may one enlarged to a minimum close to its share.
        image_slot: What stands for a picture; None where the image processor tells the patches of
            each (`image_grid_thw`, as Qwen's do).
        image_processor: Settings of the backbone's image processor to change, by their own names.

    Raises:
        ValueError: The tokenizer has no chat template, or one that writes no image token; the
            configuration names no image token; the image processor does not know a setting, or
            gives what `image_slot` does not fit; a number of tokens is out of its range.
    """

    def __init__(
        self,
        backbone: str | Path,
        emb_token: str = "<|emb|>",
        min_image_tokens: int | None = None,
        max_image_tokens: int | None = None,
        image_slot: ImageSlot | None = None,
        image_processor: dict[str, Any] | None = None,
    ) -> None:
        folder = resolve_backbone(str(backbone))
        self._name = f"backbone {str(backbone)!r}"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {self._name} has no chat template (data.backbone)")
        if emb_token not in self.tokenizer.get_vocab():
            self.tokenizer.add_special_tokens(
                {"additional_special_tokens": [emb_token]}, replace_extra_special_tokens=False
            )
        self.emb_token_id = int(self.tokenizer.get_vocab()[emb_token])
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
        if config.get("image_token_id") is None:
            raise ValueError(f"the config.json of {self._name} has no image_token_id")
        self.image_token_id = int(config["image_token_id"])
        self._image_token = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        self.pictures = PictureReader(
            AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False),
            self._name,
            min_image_tokens,
            max_image_tokens,
            image_slot,
            image_processor or {},
        )
        slot = image_slot or ImageSlot(0)
        self._before_image = self.tokenizer.encode(slot.before, add_special_tokens=False)
        self._after_image = self.tokenizer.encode(slot.after, add_special_tokens=False)
        self._check_template()

    def _check_template(self) -> None:
        """Render one picture, so that a template without image tokens fails before any data."""
        self.tokenize([Turn([{"role": "user", "content": [{"type": "image"}]}], [PROBE])])

    def compute_digest(self) -> str:
        """Return a digest of all that decides which tokens and patches a record becomes."""
        parts = (
            self.tokenizer.backend_tokenizer.to_str(),
            self.tokenizer.chat_template,
            self.pictures.describe(),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def __call__(
        self, turns: Sequence[Turn], padding_side: Literal["left", "right"] = "right"
    ) -> EncoderInput:
        """Turn sequences into a padded batch whose labels are the responses' tokens."""
        return self.pad(self.tokenize(turns), padding_side).unpack()

    def tokenize(self, turns: Sequence[Turn]) -> list[TokenizedTurn]:
        """Return each turn's tokens, images expanded, and its patches.

        Prompt and response are tokenized apart, so a training sequence equals its prompt plus
        generated tokens.
        """
        prompts = self._encode([self._render_prompt(turn) for turn in turns])
        texts = [self._strip_image_token(turn.response or "") + turn.end for turn in turns]
        pictures = self.pictures.read([turn.images for turn in turns])
        rows = []
        for prompt, text, (patches, grid, counts) in zip(
            prompts, self._encode(texts), pictures, strict=True
        ):
            expanded = self._expand_images(prompt, counts)
            rows.append(TokenizedTurn(expanded + text, len(expanded), patches, grid))
        return rows

    def pad(
        self, rows: Sequence[TokenizedTurn], padding_side: Literal["left", "right"] = "right"
    ) -> EncoderInput:
        """Return tokenized turns as one batch as wide as the longest, its patches packed."""
        width = max(len(row.ids) for row in rows)
        input_ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full_like(input_ids, IGNORED_LABEL)
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            shift = width - len(row.ids) if padding_side == "left" else 0
            ids = torch.tensor(row.ids)
            input_ids[i, shift : shift + len(ids)] = ids
            attention_mask[i, shift : shift + len(ids)] = 1
            labels[i, shift + row.num_prompt_tokens : shift + len(ids)] = ids[
                row.num_prompt_tokens :
            ]
        patches = [row.pixel_values for row in rows if row.pixel_values is not None]
        grids = [row.image_grid_thw for row in rows if row.image_grid_thw is not None]
        return EncoderInput(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_token_type_ids=(input_ids == self.image_token_id).long(),
            labels=labels,
            pixel_values=torch.cat(patches) if patches else None,
            image_grid_thw=torch.cat(grids) if grids else None,
            pixel_scale=self.pictures.scale if patches else None,
        )

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return a text cut to at most `max_tokens` tokens."""
        if len(text) <= max_tokens:
            return text
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return text if len(ids) <= max_tokens else str(self.tokenizer.decode(ids[:max_tokens]))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def _render_prompt(self, turn: Turn) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [{**message, "content": self._list_parts(message)} for message in turn.messages],
                tokenize=False,
                add_generation_prompt=True,
            )
        )

    def _expand_images(self, prompt: list[int], image_tokens: list[int]) -> list[int]:
        """Expand each image slot of a prompt to its number of tokens."""
        if (found := prompt.count(self.image_token_id)) != len(image_tokens):
            raise ValueError(
                f"the chat template of {self._name} writes {self._image_token} {found} times for "
                f"{len(image_tokens)} pictures"
            )
        ids: list[int] = []
        remaining = iter(image_tokens)
        for token in prompt:
            if token == self.image_token_id:
                ids += [*self._before_image, *[token] * next(remaining), *self._after_image]
            else:
                ids.append(token)
        return ids

    def _list_parts(self, message: dict[str, Any]) -> list[dict[str, str]]:
        """Return a message's content as parts: some templates leave out what is a plain string."""
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return [
            {**part, "text": self._strip_image_token(part["text"])} if "text" in part else part
            for part in parts
        ]

    def _strip_image_token(self, text: str) -> str:
        """Put a blank in place of an image token, which no record may inject."""
        return text.replace(self._image_token, " ")
