"""Leaks: what a rationale holds that its writer cannot have thought of by itself.

A text is found by runs of words: more consecutive words in common than chance gives. A run that the
query holds too is a quotation of the query, which every writer saw.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tracelib.construction.rules.violation import Violation
from tracelib.construction.rules.words import split_ngrams, split_words


def find_copied_run(text: str, source: str, seen: Sequence[str], num_words: int) -> str | None:
    """Return the first run of `num_words` words of a text that is in the source, or None.

    Args:
        text: The text that is looked through.
        source: What must not be copied.
        seen: Texts whose runs may be copied although the source has them.
        num_words: Length of a run, at least 1.

    >>> find_copied_run("It is a big red dog, I think", "A big, red dog runs.", ["a big cat"], 4)
    'a big red dog'
    """
    forbidden = set(split_ngrams(split_words(source), num_words))
    for quoted in seen:
        forbidden.difference_update(split_ngrams(split_words(quoted), num_words))
    runs = split_ngrams(split_words(text), num_words) if forbidden else []
    return next((" ".join(run) for run in runs if run in forbidden), None)


def find_leaked_id(text: str, target_id: str | None) -> Iterator[Violation]:
    """Yield a violation `leaked_id` where the target's id stands in a text, whole."""
    if target_id is None:
        return
    if re.search(rf"(?<![\w:]){re.escape(target_id)}(?![\w:])", text):
        yield Violation("leaked_id", f"holds the target's id {target_id}")


def find_leaked_target(
    text: str, target_text: str | None, seen: Sequence[str], max_words: int
) -> Iterator[Violation]:
    """Yield a violation `leaked_target` for more than `max_words` words of the target in a row.

    A target of no more words than that cannot be told from a right answer, so it passes.

    Args:
        text: The teacher's output.
        target_text: Text of the target, or None where it has none.
        seen: The texts of the query, which may be quoted.
        max_words: Most consecutive words in common.
    """
    run = find_copied_run(text, target_text or "", seen, max_words + 1)
    if run is not None:
        yield Violation("leaked_target", f"copies {run!r}, allowed are {max_words} words in a row")


def find_leaked_prompt(
    text: str, prompt: str, seen: Sequence[str], max_words: int
) -> Iterator[Violation]:
    """Yield a violation `leaked_prompt` for more than `max_words` words of the prompt in a row.

    Args:
        text: The teacher's output.
        prompt: What the teacher was told, `""` to leave the rule out.
        seen: The texts of the query, which stand in the prompt and may be quoted.
        max_words: Most consecutive words in common.
    """
    run = find_copied_run(text, prompt, seen, max_words + 1)
    if run is not None:
        yield Violation("leaked_prompt", f"copies {run!r}, allowed are {max_words} words in a row")
