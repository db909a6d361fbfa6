"""The form of a teacher's output, `<reasoning>..</reasoning><answer>..</answer>`, and its rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tracelib.construction.rules.violation import Violation

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
"""The only tags of an output, in the order they come in, each once."""
_OUR_TAG = re.compile(r"<\s*/?\s*(?:reasoning|answer)\b[^<>]*>?", re.IGNORECASE)
_ANY_TAG = re.compile(r"<\|[^\s<>|]+\|>|</?[a-z][\w-]*\s*/?>|\[/?INST\]", re.IGNORECASE)
_MAX_SHOWN = 60


def parse_rationale_text(text: str) -> tuple[str, str]:
    r"""Return the stripped (reasoning, answer) of a teacher's output.

    Text outside the tags is left to `find_text_outside_tags`.

    Raises:
        ValueError: A tag is missing, comes twice or stands in the wrong place.

    >>> parse_rationale_text("<reasoning>A cat.</reasoning>\n<answer>cat</answer>")
    ('A cat.', 'cat')
    """
    parts = _split_at_tags(text)
    if parts is None:
        raise ValueError(f"{text[:_MAX_SHOWN]!r} does not have {' .. '.join(TAGS)} in this order")
    return parts[1].strip(), parts[3].strip()


def has_tags(text: str) -> bool:
    """Return whether each tag comes once and in order, so that the text can be parsed."""
    return _split_at_tags(text) is not None


def find_missing_tags(text: str) -> Iterator[Violation]:
    """Yield a violation `missing_tag` for each tag that is not there; a part may be unclosed."""
    for tag in TAGS:
        if tag not in text:
            yield Violation("missing_tag", f"there is no {tag}")


def find_repeated_tags(text: str) -> Iterator[Violation]:
    """Yield a violation `repeated_tag` for each tag that comes more than once."""
    for tag in TAGS:
        if (count := text.count(tag)) > 1:
            yield Violation("repeated_tag", f"{tag} comes {count} times, allowed is once")


def find_misplaced_tags(text: str) -> Iterator[Violation]:
    """Yield a violation `misplaced_tag` where each tag comes once, but not in that order."""
    if all(text.count(tag) == 1 for tag in TAGS):
        found = sorted(TAGS, key=text.index)
        if tuple(found) != TAGS:
            yield Violation(
                "misplaced_tag", f"the order is {' '.join(found)}, not {' '.join(TAGS)}"
            )


def find_malformed_tags(text: str) -> Iterator[Violation]:
    """Yield a violation `malformed_tag` for each of our tags that is not written as in `TAGS`."""
    for match in _OUR_TAG.finditer(text):
        if (tag := match.group()) not in TAGS:
            yield Violation("malformed_tag", f"{tag[:_MAX_SHOWN]!r} is none of {' '.join(TAGS)}")


def find_foreign_tags(text: str) -> Iterator[Violation]:
    """Yield a violation `foreign_tag` for each control token or markup tag that is not ours."""
    for match in _ANY_TAG.finditer(text):
        if not _OUR_TAG.fullmatch(tag := match.group()):
            yield Violation("foreign_tag", f"{tag[:_MAX_SHOWN]!r} is none of {' '.join(TAGS)}")


def find_text_outside_tags(text: str) -> Iterator[Violation]:
    """Yield a violation `text_outside_tags` for words before, between or after the two parts."""
    if (parts := _split_at_tags(text)) is None:
        return
    for place, words in zip(("before", "between", "after"), parts[::2], strict=True):
        if words.strip():
            yield Violation("text_outside_tags", f"{place} them: {words.strip()[:_MAX_SHOWN]!r}")


def _split_at_tags(text: str) -> list[str] | None:
    """Return the five texts around the four tags, or None unless each comes once and in order."""
    if any(text.count(tag) != 1 for tag in TAGS):
        return None
    parts = []
    for tag in TAGS:
        before, found, text = text.partition(tag)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]
