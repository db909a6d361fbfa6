"""What every verifier offers: a question about a sample's answer, and the verdict in the reply."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tracelib.construction.prompt_slots import TARGET_SLOTS
from tracelib.construction.queries import SourceQuery
from tracelib.construction.teachers.teacher import Reply, Request, Teacher
from tracelib.construction.templates import TemplateSet, load_templates


@dataclass(frozen=True)
class Verdict:
    """What a verifier thinks of an answer.

    Args:
        is_consistent: Whether the answer fits the true target.
        confidence: How sure the verifier is, 0 .. 1.
        reason: Why, in a sentence.
    """

    is_consistent: bool
    confidence: float
    reason: str


class Verifier(Protocol):
    """Holds answers against the targets that they were never shown.

    Attributes:
        teacher: The model that it asks.
    """

    @property
    def teacher(self) -> Teacher:
        """The model that it asks."""

    def describe_reading(self) -> dict[str, Any]:
        """Return JSON values that a verdict depends on beside the request and its reply."""

    def build_request(self, key: str, query: SourceQuery, reasoning: str, answer: str) -> Request:
        """Return the question about an answer.

        Args:
            key: Name of the request.
            query: The query, with its true target.
            reasoning: The thought before the answer.
            answer: The answer.
        """

    def read_reply(self, reply: Reply, query: SourceQuery, answer: str) -> Verdict:
        """Return the verdict that a reply gives.

        Raises:
            ValueError: The reply cannot be read; another attempt may bring one that can.
        """


def load_verify_templates(folder: Path) -> TemplateSet:
    """Read a verifier's prompts, each of which shows the target.

    Raises:
        ValueError: There is none, one breaks the format, or one does not show the target.
    """
    templates = load_templates(folder)
    for template in templates.templates:
        if template.source != "oracle" or not TARGET_SLOTS & set(template.slots):
            raise ValueError(
                f"{folder}: template {template.name!r} is of source {template.source!r} and has "
                f"the slots {list(template.slots)}; nothing can be verified without the target: "
                "set source to 'oracle' and show {target_image}, {target} or both (verify.verifier)"
            )
    return templates
