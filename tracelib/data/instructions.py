"""M-BEIR's table of instructions, and the policy that chooses among the prompts of a row."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Literal

from tracelib.data.jsonl import DataError
from tracelib.data.records import TASK_MODALITIES
from tracelib.prompts import format_text

InstructionKey = tuple[str, str, str]
"""Data set id, query modality and candidate modality: what a row is found by."""
PromptPolicy = Literal["fixed", "per_query_hash", "random", "all"]
_POLICIES = ("fixed", "per_query_hash", "random", "all")


class InstructionTable:
    """The prompts of each (data set, query modality, candidate modality), formatted.

    Args:
        path: Tab-separated file: query modality, candidate modality, name, data set id, prompts.
        policy: `fixed` takes a row's first prompt, `per_query_hash` one fixed by the query id,
            `random` one drawn with `seed`, `all` each in turn.
        seed: Seed of the `random` policy.

    Raises:
        DataError: The file is missing, a line breaks its format, or two lines have one key.
        ValueError: There is no such policy.
    """

    def __init__(self, path: Path, policy: PromptPolicy = "fixed", seed: int = 0) -> None:
        if policy not in _POLICIES:
            raise ValueError(f"prompt_policy is {policy!r}; it must be one of {_POLICIES}")
        if not path.exists():
            raise DataError(f"{path}: the file is missing")
        self.path, self.policy, self.seed = path, policy, seed
        self._prompts: dict[InstructionKey, list[str]] = {}
        lines: dict[InstructionKey, int] = {}
        for line, text in enumerate(path.read_bytes().splitlines()[1:], 2):
            try:
                key, prompts = parse_instruction_line(text)
            except DataError as error:
                raise DataError(f"{path}:{line}: {error}") from error
            if key in lines:
                raise DataError(f"{path}:{line}: {key} has a row already, at line {lines[key]}")
            lines[key], self._prompts[key] = line, prompts

    def find_prompts(self, query_id: str, modalities: tuple[str, str]) -> list[str]:
        """Return the prompts of a query's row.

        Args:
            query_id: Its id `D:N`; `D` is the data set whose row is used.
            modalities: Modality of the query and of its candidates.

        Raises:
            DataError: The table has no row for the query.
        """
        key = (query_id.partition(":")[0], *modalities)
        if key not in self._prompts:
            raise DataError(
                f"{self.path}: no row for query {query_id!r}: data set id {key[0]}, query modality "
                f"{modalities[0]!r}, candidate modality {modalities[1]!r}; add it"
            )
        return self._prompts[key]

    def choose(
        self, prompts: Sequence[str], split: str, query_id: str, prompt_number: int = 0
    ) -> str:
        """Return the prompt of a query.

        Args:
            prompts: The prompts of its row.
            split: Split of the query, part of the `random` policy's seed.
            query_id: Its id `D:N`.
            prompt_number: Under the policy `all` the prompt asked for, from 1.
        """
        if self.policy == "fixed":
            return prompts[0]
        if self.policy == "all":
            return prompts[prompt_number - 1]
        if self.policy == "random":
            return Random(f"{self.seed} {split} {query_id}").choice(prompts)
        return prompts[zlib.crc32(query_id.encode()) % len(prompts)]

    def format_text(self, instruction: str, text: str) -> str:
        """Return a query's own text as M-BEIR formats it behind its instruction."""
        # Instruction and text with a blank between are M-BEIR's query string.
        return format_text(f"{instruction} {text}")[len(instruction) + 1 :]


class VerbatimTexts:
    """In the place of instructions: a text holds its own, and is taken as it is."""

    policy: PromptPolicy = "fixed"

    def find_prompts(self, query_id: str, modalities: tuple[str, str]) -> list[str]:
        """Return an empty prompt."""
        return [""]

    def choose(
        self, prompts: Sequence[str], split: str, query_id: str, prompt_number: int = 0
    ) -> str:
        """Return the empty prompt."""
        return ""

    def format_text(self, instruction: str, text: str) -> str:
        """Return the text."""
        return text


def parse_instruction_line(text: bytes) -> tuple[InstructionKey, list[str]]:
    r"""Return the key and the formatted prompts of a line.

    Raises:
        DataError: The line breaks the format; the message names neither file nor line.

    >>> parse_instruction_line(b"image\ttext\tNews\t0\tname the event\t")
    (('0', 'image', 'text'), ['Name the event.'])
    """
    try:
        words = text.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{text[:80]!r} is no UTF-8: {error}") from error
    if not words.strip():
        raise DataError("the line is empty; take it out")
    key = dataset_id, *modalities = read_instruction_key(text)
    if tuple(modalities) not in TASK_MODALITIES.values():
        raise DataError(f"{words!r}: no task has the query and candidate modality {modalities}")
    if not dataset_id.isdecimal():
        raise DataError(f"{words!r}: data set id {dataset_id!r}, in column 4, is no integer >= 0")
    prompts = [format_text(cell.strip()) for cell in words.split("\t")[4:] if cell.strip()]
    if not prompts:
        raise DataError(f"{words!r}: no prompt from column 5 on")
    if any(prompt != format_text(prompt) for prompt in prompts):
        raise DataError(f"{words!r}: a prompt begins with a quote and a blank")
    return key, prompts


def read_instruction_key(text: bytes) -> InstructionKey:
    """Return what stands where a line has its key, also of a line that breaks the format."""
    words = text.decode(errors="replace")
    query_modality, candidate_modality, _, dataset_id, *_ = [
        cell.strip() for cell in [*words.split("\t"), "", "", "", ""]
    ]
    return dataset_id, query_modality, candidate_modality
