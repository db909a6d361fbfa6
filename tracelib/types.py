"""The values that cross layers: records of the benchmark, and batches for the model.

Shapes: B sequences, T tokens, P vision patches, F features of a patch, I images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Side = Literal["query", "candidate"]
RationaleSource = Literal["teacher", "oracle", "self"]

ContrastiveRationale = Literal["annotated", "oracle", "self"]
"""What the embedding is read after in training: the text of the language-modelling loss, which must
not have seen the target (`annotated`) or may have (`oracle`), or the model's own thought (`self`).
"""

IGNORED_LABEL = -100
"""Label of a token that is no target."""


@dataclass(frozen=True)
class Rationale:
    """A chain of thought for one query.

    Args:
        reasoning: The thought itself.
        answer: Its last line, the description of what is sought.
        source: `teacher` saw the query only, `oracle` saw the target too, `self` was written by the
            model in use.
    """

    reasoning: str
    answer: str
    source: RationaleSource = "teacher"

    @property
    def text(self) -> str:
        """Reasoning and answer without tags, as the model learns to write them (TRACE, 4.1)."""
        return f"{self.reasoning} {self.answer}".strip()


@dataclass(frozen=True, slots=True)
class Query:
    """A query of one column.

    Args:
        query_id: `D:N`, unique within a split only.
        column: The benchmark column, e.g. `cirr_task7`.
        task_id: M-BEIR task, 0 .. 8; it fixes query and candidate modality.
        text: The query's own text, `""` when it has none.
        image_path: Path relative to the data root, or None.
        instruction: The prompt chosen by the policy, formatted; `""` for none.
        positive_ids: Candidate ids that count as hits, possibly of another dataset.
        rationale: The thought written for it, or None.
        difficulty: 1 when the query needs thought, 0 when not, None when nobody said.
        negative_ids: Hard negatives, never positives too.
        prompt_number: Which prompt of its instruction row it has, from 1, where each query comes
            once with every prompt; 0 where one was chosen.
    """

    query_id: str
    column: str
    task_id: int
    text: str
    image_path: str | None
    instruction: str
    positive_ids: tuple[str, ...]
    rationale: Rationale | None = None
    difficulty: int | None = None
    negative_ids: tuple[str, ...] = ()
    prompt_number: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate of a pool.

    Args:
        candidate_id: `D:N`, unique over all pools.
        text: Its text, formatted unless it is straight from the file; `""` when it has none.
        image_path: Path relative to the data root, or None.
        modality: `text`, `image` or `image,text`.
    """

    candidate_id: str
    text: str
    image_path: str | None
    modality: str


@dataclass
class EncoderInput:
    """Token sequences with their images, ready for a backbone.

    Args:
        input_ids: `[B, T]` token ids, images expanded to one placeholder per merged patch.
        attention_mask: `[B, T]`, 1 on real tokens.
        mm_token_type_ids: `[B, T]`, 1 on image tokens (multimodal rotary positions are computed
            from it).
        labels: `[B, T]` target ids, -100 where a token is not a target; all -100 for a prompt.
        pixel_values: `[P, F]` patches of all images in order, or None without images; bytes where
            `pixel_scale` says what they stand for.
        image_grid_thw: `[I, 3]` patches per image (time, height, width), or None without images.
        branches: `[B, T]` where one prompt has two continuations: 0 on the prompt, 1 on the text of
            the language-modelling loss, 2 on the text the embedding is read after, and neither
            continuation sees the other; None where a sequence has one.
        vision_outputs: What the vision encoder's blocks gave for these pictures, by block number,
            filled by the first pass and read by later ones; None where none is to come.
        pixel_scale: `[2, F]` mean and deviation of each feature of a patch, for patches in bytes.
        pictures: What the backbone made of the pictures (`Encoder.read_pictures`), in place of
            their patches; None where they are yet to be read.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mm_token_type_ids: Tensor
    labels: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    branches: Tensor | None = None
    vision_outputs: dict[int, Tensor] | None = None
    pixel_scale: Tensor | None = None
    pictures: Any = None

    def to(self, device: torch.device | str) -> EncoderInput:
        """Return a copy on `device`; what the vision encoder gave is shared, not moved."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def unpack(self) -> EncoderInput:
        """Return a copy whose patches are what a backbone reads, four times the memory of bytes."""
        if self.pixel_scale is None or self.pixel_values is None:
            return self
        mean, deviation = self.pixel_scale
        pixel_values = (self.pixel_values / 255).sub_(mean).div_(deviation)
        return dataclasses.replace(self, pixel_values=pixel_values, pixel_scale=None)

    def pin_memory(self) -> EncoderInput:
        """Return a copy in page-locked memory, which a CUDA device reads while the host goes on."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> EncoderInput:
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        changed: dict[str, Any] = {k: change(v) for k, v in values if isinstance(v, Tensor)}
        return dataclasses.replace(self, **changed)


@dataclass
class TrainBatch:
    """Queries of one device and step with their positives and hard negatives.

    Args:
        query: Query sequences with their rationales (or none) and the embedding token, in chunks of
            similar length that are encoded at once.
        candidate: Candidate sequences, positives and hard negatives, in such chunks too.
        task_ids: `[B]` M-BEIR task of each query, over all chunks.
        query_ids: `[B]` ids of the queries as numbers.
        difficulty: `[B]` 1 hard, 0 easy, a probability in between, -1 unknown.
        targets: `[B]` place of each query's positive among the candidates.
        positive_ids: `[B, P]` integer ids of all positives of each query, padded with -1.
        candidate_ids: `[C]` integer ids of the candidates, over all chunks.
        is_cached: Encode each chunk twice and hold the activations of one at a time (GradCache), in
            place of those of all.
    """

    query: list[EncoderInput]
    candidate: list[EncoderInput]
    task_ids: Tensor
    query_ids: Tensor
    difficulty: Tensor
    targets: Tensor
    positive_ids: Tensor
    candidate_ids: Tensor
    is_cached: bool = False

    def pin_memory(self) -> TrainBatch:
        """Return a copy whose sequences are in page-locked memory; data loaders call it."""
        return dataclasses.replace(
            self,
            query=[chunk.pin_memory() for chunk in self.query],
            candidate=[chunk.pin_memory() for chunk in self.candidate],
        )


@dataclass
class QueryBatch:
    """Prompts of queries to embed.

    Args:
        inputs: Prompts, in parts of similar length that are read at once.
        task_ids: `[B]` M-BEIR task of each query, over all parts.
        query_ids: `[B]` ids of the queries as numbers.
        indices: `[B]` place of each query in the split's list of queries.
    """

    inputs: list[EncoderInput]
    task_ids: Tensor
    query_ids: Tensor
    indices: Tensor


@dataclass
class CandidateBatch:
    """Candidates to embed.

    Args:
        inputs: Sequences that end with the embedding token.
        indices: `[B]` place of each candidate in the union pool.
    """

    inputs: EncoderInput
    indices: Tensor


def count_records(batch: TrainBatch | QueryBatch | CandidateBatch) -> int:
    """Return the queries or candidates of a batch, for Lightning's throughput monitor."""
    return len(batch.task_ids if isinstance(batch, TrainBatch) else batch.indices)
