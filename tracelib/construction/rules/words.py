"""Words of a text as the rules compare them: without case, punctuation or symbols."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_APOSTROPHES = re.compile("['’‘ʼ`´]")
_NO_WORD = re.compile(r"[^\w\s]|_")

Ngram = tuple[str, ...]


def normalize_text(text: str) -> str:
    """Lower-case a text and strip its punctuation and symbols.

    Apostrophes vanish, any other mark parts two words: `3.5` is not `35`.

    >>> normalize_text("The dog's T-shirt,  size 3.5!")
    'the dogs t shirt size 3 5'
    """
    plain = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).lower())
    return " ".join(_NO_WORD.sub(" ", plain).split())


def split_words(text: str) -> list[str]:
    """Return the normalised words of a text, in order."""
    return normalize_text(text).split()


def split_ngrams(words: Sequence[str], num_words: int) -> list[Ngram]:
    """Return every run of `num_words` consecutive words, in order.

    >>> split_ngrams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    return [tuple(words[i : i + num_words]) for i in range(len(words) - num_words + 1)]


def fold_plural(word: str) -> str:
    """Return a word without its English plural ending, so that `dogs` and `dog` are one.

    >>> [fold_plural(word) for word in ("dogs", "dresses", "puppies", "dress", "bus")]
    ['dog', 'dress', 'puppy', 'dress', 'bus']
    """
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
