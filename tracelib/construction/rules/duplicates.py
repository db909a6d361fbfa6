"""Near-duplicates: a second (query, answer) pair that differs in case and punctuation only."""

from __future__ import annotations

import hashlib

from tracelib.construction.rules.violation import Violation
from tracelib.construction.rules.words import normalize_text


def hash_pair(query_text: str, image_path: str | None, answer: str) -> int:
    """Return 64 bits that are equal for near-duplicates, on every machine.

    The picture is part of the query: a question that is asked of two pictures is two queries, and
    half of M-BEIR-CoT are a few thousand questions asked of many pictures.

    Args:
        query_text: The query's own text.
        image_path: Path of its picture, compared as it is, or None.
        answer: The answer.

    >>> hash_pair("Is it red?", None, "A dog.") == hash_pair("is it red", None, "a  dog")
    True
    """
    parts = (normalize_text(query_text), image_path or "", normalize_text(answer))
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class SeenPairs:
    """The pairs met so far, as 64-bit hashes: the first of near-duplicates stays.

    Feed the pairs in a fixed order, as it decides which one stays. Among a million different pairs
    the odds of any two having the same hash are 3 in 100 million.
    """

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def add(self, query_text: str, image_path: str | None, answer: str) -> Violation | None:
        """Take a pair in; return a violation `near_duplicate` if it was there, else None.

        Args:
            query_text: The query's own text.
            image_path: Path of its picture, or None.
            answer: The answer.
        """
        if (pair := hash_pair(query_text, image_path, answer)) in self._hashes:
            return Violation("near_duplicate", f"an earlier row has this query and {answer!r}")
        self._hashes.add(pair)
        return None
