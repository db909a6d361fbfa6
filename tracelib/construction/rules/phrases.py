"""Refusals and boilerplate: the phrases, and the rules that look for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from tracelib.construction.rules.violation import Violation
from tracelib.construction.rules.words import normalize_text

REFUSALS = (
    "I'm sorry, but",
    "I am sorry, but",
    "sorry, I can't",
    "sorry, I cannot",
    "I apologize",
    "I can't",
    "I cannot",
    "I could not",
    "I couldn't",
    "I don't see",
    "I do not see",
    "I don't have access",
    "I do not have access",
    "I'm unable to",
    "I am unable to",
    "I'm not able to",
    "I am not able to",
    "I won't provide",
    "I will not provide",
    "I must decline",
    "unable to view",
    "unable to see the image",
    "unable to process",
    "cannot view images",
    "no image was provided",
    "no image is provided",
    "no image has been provided",
    "image is not available",
    "please provide",
    "please upload",
    "against my guidelines",
)
"""A model that does not do what it was asked. All are of the first person or about a missing
picture: `sorry, we are closed` on a shop sign is no refusal."""

BOILERPLATE = (
    "as an AI language model",
    "as an AI model",
    "as an AI assistant",
    "as a language model",
    "as a large language model",
    "I hope this helps",
    "let me know if",
    "feel free to",
    "sure, here",
    "certainly, here",
    "of course, here",
    "here is the answer",
    "here's the answer",
    "here is my reasoning",
    "here's my reasoning",
    "is there anything else",
    "your reasoning here",
    "your answer here",
    "insert answer",
    "insert reasoning",
    "lorem ipsum",
    "ground truth",
    "system prompt",
    "output format",
    "reasoning tags",
    "answer tags",
    "inside the tags",
    "word limit",
    "token limit",
)
"""What a chat model says around its work, unfilled templates, and talk about the task's form."""


_normalize_phrase = lru_cache(maxsize=1024)(normalize_text)


def find_refusals(text: str, phrases: Sequence[str]) -> Iterator[Violation]:
    """Yield a violation `refusal` where the text holds one of the phrases, as whole words."""
    yield from _find_phrase("refusal", text, phrases)


def find_boilerplate(text: str, phrases: Sequence[str]) -> Iterator[Violation]:
    """Yield a violation `boilerplate` where the text holds one of the phrases, as whole words."""
    yield from _find_phrase("boilerplate", text, phrases)


def _find_phrase(rule: str, text: str, phrases: Sequence[str]) -> Iterator[Violation]:
    words = f" {normalize_text(text)} "
    found = [phrase for phrase in phrases if f" {_normalize_phrase(phrase)} " in words]
    if found:
        yield Violation(rule, f"says {', '.join(map(repr, found))}")
