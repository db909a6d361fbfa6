"""A violation: what a rule found wrong with a teacher's output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One breach of one rule.

    Args:
        rule: Name of the rule, e.g. `answer_tokens`.
        detail: What was found and what is allowed.
    """

    rule: str
    detail: str
