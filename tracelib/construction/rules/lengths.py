"""The length of a rationale's two parts, in tokens of the teacher."""

from __future__ import annotations

from collections.abc import Iterator

from tracelib.construction.rules.violation import Violation


def find_reasoning_length(num_tokens: int, lowest: int, highest: int) -> Iterator[Violation]:
    """Yield a violation `reasoning_tokens` where the reasoning is too short or too long."""
    yield from _find_length("reasoning_tokens", num_tokens, lowest, highest)


def find_answer_length(num_tokens: int, lowest: int, highest: int) -> Iterator[Violation]:
    """Yield a violation `answer_tokens` where the answer is too short or too long."""
    yield from _find_length("answer_tokens", num_tokens, lowest, highest)


def _find_length(rule: str, num_tokens: int, lowest: int, highest: int) -> Iterator[Violation]:
    if not lowest <= num_tokens <= highest:
        yield Violation(rule, f"{num_tokens} tokens, allowed are {lowest} .. {highest}")
