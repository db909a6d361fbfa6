"""What every verifier offers: a question about a sample's answer, and the verdict in the reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tracelib.construction.queries import SourceQuery
from tracelib.construction.teachers.teacher import Reply, Request, Teacher


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
