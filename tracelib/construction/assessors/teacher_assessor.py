"""Difficulty by a teacher that reads the query."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tracelib.construction.assessors.verdict import Assessment
from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.schedule import Schedule, Work
from tracelib.construction.phase_driver import OnProgress, Outcome, run_phase
from tracelib.construction.queries import SourceQueries, SourceQuery
from tracelib.construction.teachers.teacher import Reply, Request, Teacher, replace_surrogates
from tracelib.construction.templates import PromptTemplate, load_templates

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "difficulty": {"type": "integer", "enum": [0, 1]},
    },
    "required": ["reason", "difficulty"],
    "additionalProperties": False,
}
"""The reply; the reason comes first, so that the verdict follows from it."""
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
_MAX_SHOWN = 200


class TeacherAssessor:
    """Asks a teacher whether a query needs thought (TRACE, section 3.2, phase 1).

    Args:
        teacher: The teacher.
        templates: Folder of its prompts, all of source `teacher`.
        hard_pattern: Regular expression whose match in a reply means that the query needs thought,
            for teachers that write no JSON; null reads a JSON object with `difficulty` and
            `reason`.
        easy_pattern: The same for a query that needs none; both patterns or neither.
        max_tokens: Longest reply, 1 and above.
        temperature: Divides the logits, 0 and above.
        seed: Seed of the reply's sampling.
        concurrency: Requests in flight, 1 and above.

    Raises:
        ValueError: A template is broken or shows the target, a number is out of its range, or a
            pattern is alone or no regular expression.
    """

    def __init__(
        self,
        teacher: Teacher,
        templates: Path,
        hard_pattern: str | None = None,
        easy_pattern: str | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        concurrency: int = 64,
    ) -> None:
        for name, number in (("max_tokens", max_tokens), ("concurrency", concurrency)):
            if number < 1:
                raise ValueError(f"{name} is {number}; allowed 1 and above (assess.assessors)")
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature}; allowed 0 and above")
        self._patterns = _compile_patterns(hard_pattern, easy_pattern)
        self._templates = load_templates(templates)
        for template in self._templates.templates:
            if template.source != "teacher":
                raise ValueError(
                    f"{templates}: template {template.name!r} is of source {template.source!r}; "
                    "difficulty is judged by the query alone"
                )
        self.teacher = teacher
        self._max_tokens, self._temperature = max_tokens, temperature
        self._seed, self.concurrency = seed, concurrency
        patterns = [hard_pattern, easy_pattern]
        self._settings = compute_input_hash(
            [teacher.key, max_tokens, temperature, seed, patterns], "assess"
        )

    def hash_input(self, query: SourceQuery) -> str:
        """Return 16 hexadecimal digits that change with teacher, sampling, prompt and reading."""
        template = self._templates.choose(query)
        return compute_input_hash([self._settings, template.sha], template.build_messages(query))

    def find_difficulty(self, query: SourceQuery) -> int | None:
        """Return None: only the teacher knows."""
        return None

    async def assess(
        self, schedule: Schedule, queries: SourceQueries, name: str, on_progress: OnProgress
    ) -> None:
        """Assess the queries that are due.

        Args:
            schedule: What is due.
            queries: The queries.
            name: Name that the rows carry.
            on_progress: Told after each reply.

        Raises:
            TeacherDownError: The teacher answers nothing any more.
        """

        def build_request(work: Work) -> Request:
            key = f"assess/{work.query_id}/{work.sample}"
            return self.build_request(key, queries.find(work.query_id))

        def read_reply(work: Work, reply: Reply) -> Outcome:
            counts = {
                "model": reply.model,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
            }
            return Outcome.done({**self.parse_reply(reply.text).format_result(name), **counts})

        await run_phase(
            schedule, self.teacher, build_request, read_reply, self.concurrency, on_progress
        )

    def build_request(self, key: str, query: SourceQuery) -> Request:
        """Return the question about a query."""
        template: PromptTemplate = self._templates.choose(query)
        return Request(
            key,
            template.build_messages(query),
            template.max_tokens or self._max_tokens,
            self._temperature,
            self._seed,
            None if self._patterns else SCHEMA,
        )

    def parse_reply(self, text: str) -> Assessment:
        """Return the verdict of a reply.

        Raises:
            ValueError: It has none, or both.
        """
        if not self._patterns:
            return _parse_json(text)
        hard, easy = (pattern.search(text) for pattern in self._patterns)
        if bool(hard) == bool(easy):
            both = "both patterns match" if hard else "neither pattern matches"
            raise ValueError(f"{both} {text[:_MAX_SHOWN]!r}")
        return Assessment(1 if hard else 0, text.strip())


def _compile_patterns(
    hard: str | None, easy: str | None
) -> tuple[re.Pattern[str], re.Pattern[str]] | None:
    if hard is None and easy is None:
        return None
    if hard is None or easy is None:
        raise ValueError(
            f"hard_pattern is {hard!r} and easy_pattern {easy!r}; set both, or neither for JSON"
        )
    try:
        return re.compile(hard), re.compile(easy)
    except re.error as error:
        raise ValueError(
            f"hard_pattern {hard!r} or easy_pattern {easy!r} is no regular expression: {error}"
        ) from error


def _parse_json(text: str) -> Assessment:
    found = _OBJECT.search(text)
    try:
        fields = json.loads(found[0]) if found else None
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"{text[:_MAX_SHOWN]!r} has no JSON object")
    difficulty, reason = fields.get("difficulty"), fields.get("reason")
    if type(difficulty) is not int or difficulty not in (0, 1):
        raise ValueError(f"difficulty {difficulty!r} of {text[:_MAX_SHOWN]!r} is neither 0 nor 1")
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"{text[:_MAX_SHOWN]!r} gives no reason")
    return Assessment(1 if difficulty else 0, replace_surrogates(reason.strip()))
