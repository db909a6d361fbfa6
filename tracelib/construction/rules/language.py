"""English only: script and function words, without a language model.

Three rules, as each sees what the others cannot. A stray word in another script stands out by its
letters. Text in a Latin-script language, or no language at all, has few English function words,
which only a text of some length can be asked for. A short answer in another language shows by that
language's own function words.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracelib.construction.rules.function_words import ENGLISH, FOREIGN
from tracelib.construction.rules.violation import Violation
from tracelib.construction.rules.words import split_words


def find_foreign_letters(text: str, max_letters: int) -> Iterator[Violation]:
    """Yield a violation `foreign_letters` where more than `max_letters` letters are not Latin."""
    foreign = [character for character in text if character.isalpha() and not _is_latin(character)]
    if len(foreign) > max_letters:
        shown = "".join(foreign[:10])
        detail = f"{len(foreign)} letters are not Latin ({shown}), allowed are {max_letters}"
        yield Violation("foreign_letters", detail)


def measure_english(text: str) -> float:
    """Return the share of English function words among the words of a text that have a letter.

    Prose has 0.3 .. 0.5, a list of nouns next to nothing; a text without words has 0.

    >>> measure_english("the dog in 3 parks")
    0.5
    """
    words = [word for word in split_words(text) if not word.isdigit()]
    return sum(word in ENGLISH for word in words) / max(1, len(words))


def find_few_english_words(text: str, min_share: float) -> Iterator[Violation]:
    """Yield a violation `few_english_words` where English function words are below `min_share`."""
    if (share := measure_english(text)) < min_share:
        detail = f"{share:.3f} of the words are English function words, required are {min_share}"
        yield Violation("few_english_words", detail)


def find_foreign_words(text: str, max_words: int) -> Iterator[Violation]:
    """Yield a violation `foreign_words` where function words of other languages prevail.

    They may outnumber the English ones by `max_words`, so that a title such as `Que Sera Sera` or
    a quotation within English prose passes.
    """
    words = split_words(text)
    foreign = [word for word in words if word in FOREIGN]
    surplus = len(foreign) - sum(word in ENGLISH for word in words)
    if surplus > max_words:
        shown = " ".join(foreign[:10])
        detail = f"{surplus} more foreign ({shown}) than English function words"
        yield Violation("foreign_words", f"{detail}, allowed are {max_words}")


def _is_latin(letter: str) -> bool:
    """Return whether a letter is of the Latin, phonetic or modifier blocks of Unicode."""
    return ord(letter) < 0x300 or 0x1E00 <= ord(letter) < 0x1F00
