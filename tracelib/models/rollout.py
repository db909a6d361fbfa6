"""Thoughts that the model writes itself in training, to be embedded after them (RGE).

The language-modelling loss keeps the annotated text, which may have seen the target; the embedding
is read after what the model wrote, as it will be when nobody knows the target.

Shapes: B queries of a batch, N of them whose thought is written, L tokens of the longest thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracelib.models.branches import NO_TOKEN, extract_prompts, select_rows
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate
from tracelib.models.sampling import Sampling
from tracelib.types import IGNORED_LABEL, EncoderInput

_LABELS_WITHOUT_THOUGHT = 1  # the embedding token


@dataclass(frozen=True)
class Rollout:
    """How the model writes its own thoughts in training.

    Args:
        max_tokens: Longest thought, 1 and above; then the embedding token is appended.
        temperature: Divides the logits, 0 and above; 0 takes the most likely token.
        refresh_steps: Steps for which a thought is used again, 0 and above; 0 writes it anew in
            each step. A query comes once an epoch, so less than an epoch's steps saves nothing.

    Raises:
        ValueError: A number is out of its range.

    References:
        RGE, arXiv 2511.16150.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    refresh_steps: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, must be at least 1 (model.rollout.max_tokens)"
            )
        if self.refresh_steps < 0:
            raise ValueError(
                f"refresh_steps is {self.refresh_steps}, must be at least 0 "
                "(model.rollout.refresh_steps)"
            )
        try:
            Sampling(self.temperature)
        except ValueError as error:
            raise ValueError(f"{error} (model.rollout.temperature)") from error


class RolloutStore:
    """The latest thought of each query, for as many steps as it may be used.

    Args:
        refresh_steps: Steps for which a thought is fresh; older ones are forgotten.
    """

    def __init__(self, refresh_steps: int) -> None:
        self.refresh_steps = refresh_steps
        self._thoughts: dict[int, tuple[int, Tensor]] = {}  # in the order of their steps

    def __len__(self) -> int:
        return len(self._thoughts)

    def find_fresh(self, query_ids: Tensor, step: int) -> Tensor:
        """Return `[B]` whether a query has a thought that is at most `refresh_steps` steps old."""
        oldest = step - self.refresh_steps
        written = [self._thoughts.get(number) for number in query_ids.tolist()]
        return torch.tensor([t is not None and t[0] >= oldest for t in written], dtype=torch.bool)

    def put(self, query_ids: Tensor, tokens: Tensor, step: int) -> None:
        """Keep thoughts `[B, L]`, padded with -1, that were written at `step`."""
        rows = tokens.to("cpu", torch.int32)
        for number, row in zip(query_ids.tolist(), rows, strict=True):
            self._thoughts.pop(number, None)
            self._thoughts[number] = step, row[row != NO_TOKEN]
        oldest = step - self.refresh_steps
        while self._thoughts and (first := next(iter(self._thoughts.items())))[1][0] < oldest:
            del self._thoughts[first[0]]

    def read(self, query_ids: Tensor) -> Tensor:
        """Return thoughts `[B, L]` of queries that have one, padded with -1."""
        return pad_thoughts([self._thoughts[number][1] for number in query_ids.tolist()])

    def state_dict(self) -> dict[str, Tensor]:
        """Return query ids, steps, lengths and, one after the other, the tokens of all thoughts."""
        steps, thoughts = zip(*self._thoughts.values(), strict=True) if self._thoughts else ((), ())
        return {
            "query_ids": torch.tensor(list(self._thoughts), dtype=torch.int64),
            "steps": torch.tensor(steps, dtype=torch.int64),
            "lengths": torch.tensor([len(t) for t in thoughts], dtype=torch.int64),
            "tokens": torch.cat([torch.empty(0, dtype=torch.int32), *thoughts]),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned, in place of all there is."""
        thoughts = torch.split(state["tokens"].cpu(), state["lengths"].tolist())
        written = zip(state["steps"].tolist(), thoughts, strict=True)
        self._thoughts = dict(zip(state["query_ids"].tolist(), written, strict=True))


def pad_thoughts(thoughts: Sequence[Tensor], width: int | None = None) -> Tensor:
    """Return thoughts as `[B, L]` int64, padded with -1 to `width` or to the longest.

    >>> pad_thoughts([torch.tensor([5, 6]), torch.tensor([7])], 3)
    tensor([[ 5,  6, -1],
            [ 7, -1, -1]])
    """
    width = max([0, *map(len, thoughts)]) if width is None else width
    padded = torch.full((len(thoughts), width), NO_TOKEN)
    for row, thought in zip(padded, thoughts, strict=True):
        row[: len(thought)] = thought
    return padded


def write_thoughts(
    engine: ReasoningEngine,
    chunks: Sequence[EncoderInput],
    query_ids: Tensor,
    is_wanted: Tensor,
    sampling: Sampling,
) -> Tensor:
    """Return what the model writes after the prompts of training chunks, without gradient.

    A query thinks where its training sequence does; the thought of another is empty. A thought
    depends on its query and on `sampling` only, not on its neighbours. Dropout is off meanwhile.

    Args:
        engine: Writes the thoughts; its limit is theirs.
        chunks: Right-padded training chunks.
        query_ids: `[B]` int64 numbers of their queries, over all chunks.
        is_wanted: `[B]` bool, whose thought to write; N are.
        sampling: How tokens are drawn, one sample per query; a seed of its own for each step.

    Returns:
        `[N, L]` tokens padded with -1, L the engine's limit, in host memory.
    """
    thinks = torch.cat([(c.labels != IGNORED_LABEL).sum(1).cpu() for c in chunks])
    is_written = is_wanted.cpu() & (thinks > _LABELS_WITHOUT_THOUGHT)
    masks = torch.split(is_written, [len(chunk.input_ids) for chunk in chunks])
    prompts = [
        extract_prompts(select_rows(chunk, mask))
        for chunk, mask in zip(chunks, masks, strict=True)
        if mask.any()
    ]
    written: list[list[int]] = []
    if prompts:
        ids = query_ids.cpu()[is_written]
        training = [module for module in engine.encoder.modules() if module.training]
        engine.encoder.eval()
        try:
            output = engine.embed_queries(
                prompts, AlwaysGate(), torch.zeros(len(ids)), ids, sampling
            )
        finally:
            for module in training:
                module.training = True
        written = output.rationale_token_ids
    # The token that stands for a picture is no word: read again, it would ask for a picture.
    config: Any = engine.encoder.model.config
    thoughts = iter([[t for t in row if t != config.image_token_id] for row in written])
    rows = [next(thoughts) if writes else [] for writes in is_written[is_wanted.cpu()].tolist()]
    return pad_thoughts([torch.tensor(row) for row in rows], engine.max_rationale_tokens)
