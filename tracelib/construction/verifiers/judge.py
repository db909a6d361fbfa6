"""A large model that sees the true target and judges the answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tracelib.construction.queries import SourceQuery
from tracelib.construction.teachers.endpoint_reply import quote
from tracelib.construction.teachers.teacher import Reply, Request, Teacher, replace_surrogates
from tracelib.construction.verifiers.verifier import Verdict, load_verify_templates

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "consistent": {"type": "boolean"},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["reason", "consistent", "confidence"],
    "additionalProperties": False,
}
"""The reply; the reason comes first, so that the decision follows from it."""
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)


class JudgeVerifier:
    """Asks a model that is shown the query, its true target and the answer.

    Templates say what it is to look for: whether the picture shows what the answer says, or the
    answer entails the target's text, and that an answer which would fit several candidates is to
    be rejected.

    Args:
        teacher: The model.
        templates: Folder of its prompts, of source `oracle` as they show the target.
        max_tokens: Longest reply, where the template sets none.
        seed: Seed of the reply's sampling; the temperature is 0.

    Raises:
        ValueError: There is no such folder, a template is broken or does not show target and
            answer, or `max_tokens` is less than 1.
    """

    def __init__(
        self, teacher: Teacher, templates: Path, max_tokens: int = 256, seed: int = 0
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; allowed 1 and above (verify.verifier)")
        self.teacher = teacher
        self._templates = load_verify_templates(templates)
        for template in self._templates.templates:
            if "answer" not in template.slots:
                raise ValueError(
                    f"{templates}: template {template.name!r} has no slot {{answer}}; there is "
                    "nothing to judge without it (verify.verifier)"
                )
        self._max_tokens, self._seed = max_tokens, seed

    def describe_reading(self) -> dict[str, Any]:
        """Return nothing: the reply alone decides."""
        return {}

    def build_request(self, key: str, query: SourceQuery, reasoning: str, answer: str) -> Request:
        """Return the question about an answer, with query, target and answer."""
        template = self._templates.choose(query)
        messages = template.build_messages(query, answer=answer, reasoning=reasoning)
        max_tokens = template.max_tokens or self._max_tokens
        return Request(key, messages, max_tokens, 0.0, self._seed, SCHEMA)

    def read_reply(self, reply: Reply, query: SourceQuery, answer: str) -> Verdict:
        """Return the verdict of a reply: one JSON object, fenced or not, as `SCHEMA` has it.

        Raises:
            ValueError: It is anything else.
        """
        return parse_verdict(reply.text)


def parse_verdict(text: str) -> Verdict:
    """Return the verdict in a text.

    Raises:
        ValueError: It is no JSON object with a boolean `consistent` and a `confidence` in 0 .. 1.

    >>> parse_verdict('{"reason": "A star.", "consistent": true, "confidence": 0.9}')
    Verdict(is_consistent=True, confidence=0.9, reason='A star.')
    """
    fenced = _FENCE.fullmatch(text)
    try:
        fields = json.loads(fenced[1] if fenced else text)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}): {quote(text)!r}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"no JSON object: {quote(text)!r}")
    is_consistent, reason = fields.get("consistent"), fields.get("reason", "")
    confidence: Any = fields.get("confidence")
    if not isinstance(is_consistent, bool) or not isinstance(reason, str):
        raise ValueError(f"consistent is no boolean, or reason no text: {quote(text)!r}")
    is_number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
    if not is_number or not 0 <= confidence <= 1:
        raise ValueError(f"confidence {confidence!r} is no number in 0 .. 1: {quote(text)!r}")
    return Verdict(is_consistent, float(confidence), replace_surrogates(reason))
