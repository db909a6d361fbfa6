r"""Prompt templates: one YAML file each, chosen by data set and task.

    name: composed_edit
    tasks: [7]
    source: teacher
    system: You reason about pictures.
    user: |
      {query_image}
      Task: {instruction}
      Query: {query}

The slots of `user` are those of `prompt_slots`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from tracelib.construction.prompt_slots import SLOTS, TARGET_SLOTS, fill_slots, find_slots
from tracelib.construction.queries import SourceQuery
from tracelib.data.records import TASK_MODALITIES

TAGGED = "tagged"
"""The form of replies that have our tags already."""
Source = Literal["teacher", "oracle"]
_REPLY_GROUPS = frozenset({"reasoning", "answer"})


@dataclass(frozen=True)
class PromptTemplate:
    """How a teacher is asked about some queries.

    Args:
        name: Name that the rows carry.
        system: System message, `""` for none.
        user: User message with its slots.
        source: `teacher` for a writer that must not see the target, `oracle` for one that does.
        datasets: Data sets that it is for; empty for all.
        tasks: M-BEIR tasks that it is for; empty for all.
        reply: `tagged`, or a regular expression for the whole reply with the groups `reasoning` and
            `answer`, for teachers that write another form.
        max_tokens: Longest reply, 1 and above; None takes that of the phase.

    Raises:
        ValueError: A value is out of its range, or a slot is not known or not allowed.
    """

    name: str
    system: str
    user: str
    source: Source = "teacher"
    datasets: tuple[str, ...] = ()
    tasks: tuple[int, ...] = ()
    reply: str = TAGGED
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"source {self.source!r} is none of {list(get_args(Source))}")
        if unknown := [slot for slot in self.slots if slot not in SLOTS]:
            known = " ".join(f"{{{slot}}}" for slot in SLOTS)
            raise ValueError(f"user has the slot {{{unknown[0]}}}; there are {known}")
        if self.source == "teacher" and (seen := sorted(TARGET_SLOTS & set(self.slots))):
            raise ValueError(
                f"user has the slot {{{seen[0]}}}, and source is 'teacher', which must not see the "
                "target; take the slot out or set source to oracle"
            )
        if not self.user.strip():
            raise ValueError("user is empty; a template needs a message")
        if unknown_tasks := [task for task in self.tasks if task not in TASK_MODALITIES]:
            raise ValueError(f"tasks has {unknown_tasks[0]!r}; allowed are {list(TASK_MODALITIES)}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; allowed 1 and above, or null")
        if self._pattern is not None and not set(self._pattern.groupindex) >= _REPLY_GROUPS:
            raise ValueError(
                f"reply {self.reply!r} needs the groups (?P<reasoning>..) and (?P<answer>..)"
            )

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The slots of `user`, in order."""
        return find_slots(self.user)

    @cached_property
    def sha(self) -> str:
        """64 hexadecimal digits of what a reply depends on; not of what it is chosen for."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("datasets", "tasks")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if self.reply == TAGGED:
            return None
        try:
            return re.compile(self.reply, re.DOTALL)
        except re.error as error:
            raise ValueError(
                f"reply {self.reply!r} is neither {TAGGED!r} nor a regular expression: {error}"
            ) from error

    def build_messages(
        self, query: SourceQuery, answer: str = "", reasoning: str = ""
    ) -> list[dict[str, Any]]:
        """Return the chat that asks about a query.

        Args:
            query: The query, with its target.
            answer: What fills the slot `{answer}`.
            reasoning: What fills the slot `{reasoning}`.
        """
        filled: dict[str, str | None] = {
            "instruction": query.instruction,
            "query": query.text,
            "target": query.target_text,
            "answer": answer,
            "reasoning": reasoning,
            "query_image": query.image_path,
            "target_image": query.target_image_path,
        }
        system = [{"role": "system", "content": self.system.strip()}] if self.system.strip() else []
        return [*system, {"role": "user", "content": fill_slots(self.user, filled)}]

    def canonicalize(self, text: str) -> str:
        r"""Return a reply in our form; one that does not match as it is, for the rules to judge.

        >>> template = PromptTemplate("a", "", "?", reply="(?P<reasoning>.*) so (?P<answer>.*)")
        >>> template.canonicalize("No idea.\n")
        'No idea.\n'
        >>> template.canonicalize("Red is gone so it is blue.\n")
        '<reasoning>Red is gone</reasoning><answer>it is blue.</answer>'
        """
        if self._pattern is None or not (match := self._pattern.fullmatch(text.strip())):
            return text
        reasoning, answer = (match[name] or "" for name in ("reasoning", "answer"))
        return f"<reasoning>{reasoning.strip()}</reasoning><answer>{answer.strip()}</answer>"

    def rank_match(self, query: SourceQuery) -> int:
        """Return how closely the template fits: 0 not at all, 1 for all, 2 by task, 3 by data set.

        One that names both fits best, by 4, if both are the query's.
        """
        fits_dataset = not self.datasets or query.dataset in self.datasets
        fits_task = not self.tasks or query.task_id in self.tasks
        if not (fits_dataset and fits_task):
            return 0
        return 1 + bool(self.tasks) + 2 * bool(self.datasets)


class TemplateSet:
    """The templates of a folder.

    Args:
        templates: The templates, each with a name of its own.
        folder: Where they come from, for messages.

    Raises:
        ValueError: There is none, or two have one name.
    """

    def __init__(self, templates: Sequence[PromptTemplate], folder: Path) -> None:
        self.templates, self.folder = tuple(templates), folder
        names = [template.name for template in templates]
        if not names:
            raise ValueError(f"{folder}: no template here; one is a file NAME.yaml")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{folder}: {names.count(twice[0])} templates are named {twice[0]!r}")

    def choose(self, query: SourceQuery) -> PromptTemplate:
        """Return the template of a query: by data set before by task before one for all.

        Raises:
            ValueError: None fits, or two fit equally well.
        """
        ranks = [template.rank_match(query) for template in self.templates]
        best = max(ranks)
        place = f"data set {query.dataset!r}, task {query.task_id} (query {query.query_id})"
        fitting = [t for t, rank in zip(self.templates, ranks, strict=True) if rank == best]
        if not best:
            names = [template.name for template in self.templates]
            raise ValueError(f"{self.folder}: no template for {place}; there are {names}")
        if len(fitting) > 1:
            names = [template.name for template in fitting]
            raise ValueError(f"{self.folder}: {names} fit {place} equally well; narrow one")
        return fitting[0]


def load_templates(folder: Path) -> TemplateSet:
    """Read the templates of a folder, its files `*.yaml`.

    Raises:
        ValueError: There is none, or one breaks the format; the message names file and value.
    """
    return TemplateSet([_load_template(path) for path in sorted(folder.glob("*.yaml"))], folder)


def _load_template(path: Path) -> PromptTemplate:
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no YAML: {error}") from error
    if not isinstance(written, dict):
        raise ValueError(f"{path}: {written!r:.80} is no mapping of a template's fields")
    known = [field.name for field in fields(PromptTemplate)]
    if unknown := sorted(set(written) - set(known)):
        raise ValueError(f"{path}: no field {unknown[0]!r}; there are {known}")
    values = {"name": path.stem, "system": "", **written}
    for name in ("name", "system", "user", "source", "reply"):
        if not isinstance(values.get(name, ""), str):
            raise ValueError(f"{path}: {name} {values[name]!r:.80} is no text")
    for name, kind in (("datasets", str), ("tasks", int)):
        entries = values.get(name, [])
        if not isinstance(entries, list) or not all(type(entry) is kind for entry in entries):
            raise ValueError(f"{path}: {name} {entries!r:.80} is no list of {kind.__name__}")
        values[name] = tuple(entries)
    if type(values.get("max_tokens")) not in (int, type(None)):
        raise ValueError(f"{path}: max_tokens {values['max_tokens']!r} is no integer")
    try:
        return PromptTemplate(**{"user": "", **values})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
