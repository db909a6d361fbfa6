"""Repetition: how much of a text says again what it said before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracelib.construction.rules.violation import Violation
from tracelib.construction.rules.words import split_ngrams, split_words


def measure_repetition(words: Sequence[str], num_words: int) -> float:
    """Return the share of n-grams that came before: (all - distinct) / all, 0 where there is none.

    0 is a text without repetition; a text said twice comes near 0.5, a loop near 1.

    Args:
        words: The words of a text.
        num_words: Words of an n-gram.

    >>> measure_repetition("a b a b a b".split(), 2)
    0.6
    """
    ngrams = split_ngrams(words, num_words)
    return (len(ngrams) - len(set(ngrams))) / max(1, len(ngrams))


def find_repetition(part: str, text: str, num_words: int, max_share: float) -> Iterator[Violation]:
    """Yield a violation `repeated_ngrams` where more than `max_share` of the n-grams came before.

    Args:
        part: Name of the text, for the violation.
        text: The text.
        num_words: Words of an n-gram.
        max_share: Largest share that is allowed, 0 .. 1.
    """
    if (share := measure_repetition(split_words(text), num_words)) > max_share:
        detail = f"{share:.3f} of the {num_words}-grams of the {part} came before"
        yield Violation("repeated_ngrams", f"{detail}, allowed are {max_share}")
