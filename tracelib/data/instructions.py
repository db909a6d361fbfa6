"""M-BEIR's table of instructions, and the policy that chooses among the prompts of a row."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Literal

from tracelib.data.jsonl import DataError
from tracelib.prompts import format_text

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
        DataError: The file is missing or a line breaks its format.
        ValueError: There is no such policy.
    """

    def __init__(self, path: Path, policy: PromptPolicy = "fixed", seed: int = 0) -> None:
        if policy not in _POLICIES:
            raise ValueError(f"prompt_policy is {policy!r}; it must be one of {_POLICIES}")
        if not path.exists():
            raise DataError(f"{path}: the file is missing")
        self.path, self.policy, self.seed = path, policy, seed
        self._prompts: dict[tuple[str, str, str], list[str]] = {}
        for number, line in enumerate(path.read_bytes().splitlines()[1:], 2):
            dataset_id, query_modality, candidate_modality, prompts = _parse_line(
                path, number, line
            )
            self._prompts[dataset_id, query_modality, candidate_modality] = prompts

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


def _parse_line(path: Path, number: int, text: bytes) -> tuple[str, str, str, list[str]]:
    try:
        line = text.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: {text[:80]!r} is no UTF-8: {error}") from error
    query_modality, candidate_modality, _, dataset_id, *cells = [
        cell.strip() for cell in [*line.split("\t"), "", "", "", ""]
    ]
    prompts = [format_text(cell) for cell in cells if cell]
    if not prompts or any(prompt != format_text(prompt) for prompt in prompts):
        raise DataError(
            f"{path}:{number}: {line!r} is not two modalities, a name, a data set id and "
            "prompts, split by tabs (a prompt may not begin with a quote and a blank)"
        )
    return dataset_id, query_modality, candidate_modality, prompts
