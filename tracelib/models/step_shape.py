"""The shape of a training step on one device: what its cost depends on beside the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tracelib.types import IGNORED_LABEL, EncoderInput


@dataclass(frozen=True)
class ChunkShape:
    """Sequences that are encoded at once.

    Args:
        num_sequences: Sequences.
        width: Tokens of each, padding and image tokens included.
        num_targets: Tokens of all that the language-modelling loss predicts.
        num_image_tokens: Image tokens of all.
        num_images: Pictures of all.
    """

    num_sequences: int
    width: int
    num_targets: int
    num_image_tokens: int = 0
    num_images: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, padding included."""
        return self.num_sequences * self.width

    @staticmethod
    def of_input(inputs: EncoderInput) -> ChunkShape:
        """Return the shape of a real chunk."""
        pictures = inputs.pixel_values if inputs.image_grid_thw is None else inputs.image_grid_thw
        num_sequences, width = inputs.input_ids.shape
        return ChunkShape(
            num_sequences,
            width,
            num_targets=int((inputs.labels != IGNORED_LABEL).sum()),
            num_image_tokens=int(inputs.mm_token_type_ids.sum()),
            num_images=0 if pictures is None else len(pictures),
        )

    def split(self, most: int) -> list[ChunkShape]:
        """Return chunks of at most `most` sequences that together are this one.

        >>> [part.num_targets for part in ChunkShape(5, 10, 50).split(2)]
        [20, 20, 10]
        """
        starts = range(0, self.num_sequences, most)
        sizes = [min(most, self.num_sequences - start) for start in starts]
        counts = ("num_targets", "num_image_tokens", "num_images")
        return [
            dataclasses.replace(
                self,
                num_sequences=size,
                **{name: -(-getattr(self, name) * size // self.num_sequences) for name in counts},
            )
            for size in sizes
        ]


@dataclass(frozen=True)
class StepShape:
    """A training step on one device.

    Args:
        chunks: What is encoded at once, queries and candidates.
        num_queries: Queries of this device.
        num_candidates: Candidates of all devices.
        is_cached: Chunks are encoded twice and held one at a time (GradCache).
        is_checkpointed: Layers are computed again in the backward pass.
        activation_bytes: Bytes of an activation, 2 or 4.
        num_written_tokens: Tokens that this device writes before it trains on them.
        num_logits_rows: Queries whose contrastive logits are held at once.
        keeps_attention: Attention scores are held, as `eager` attention does.
    """

    chunks: tuple[ChunkShape, ...]
    num_queries: int
    num_candidates: int
    is_cached: bool
    is_checkpointed: bool
    activation_bytes: int
    num_written_tokens: int = 0
    num_logits_rows: int = 1024
    keeps_attention: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks, padding included."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    def split(self, most: int) -> StepShape:
        """Return the same step with cached gradients and at most `most` sequences at once."""
        parts = [part for chunk in self.chunks for part in chunk.split(most)]
        return dataclasses.replace(self, chunks=tuple(parts), is_cached=True)
