import json
import tracemalloc
from pathlib import Path

import pytest

from tracelib.construction.rules.duplicates import SeenPairs, hash_pair

PLANTED = [
    json.loads(line)
    for line in Path(__file__).with_name("planted_pairs.jsonl").read_text("utf-8").splitlines()
]
"""Pairs in the order they are met, and whether each is a near-duplicate of one before."""


PINNED = 7920711096698873530


def find_duplicates(rows):
    seen = SeenPairs()
    return [seen.add(row["query_text"], row["image_path"], row["answer"]) for row in rows]


def test_planted_pairs_are_judged_exactly():
    found = find_duplicates(PLANTED)
    judged = {
        row["name"]: violation is not None for row, violation in zip(PLANTED, found, strict=True)
    }
    assert judged == {row["name"]: row["is_duplicate"] for row in PLANTED}
    assert {violation.rule for violation in found if violation} == {"near_duplicate"}


def test_the_order_decides_which_stays_but_not_how_many():
    kept = [row for row in PLANTED if not row["is_duplicate"]]
    assert find_duplicates(kept) == [None] * len(kept)
    assert find_duplicates(PLANTED[::-1]).count(None) == len(kept)


def test_hash_is_the_same_on_every_machine():
    assert hash_pair("Make it red!", "a.png", "A red dress.") == PINNED
    assert hash_pair("make it red", "a.png", "a red dress") == PINNED


@pytest.mark.parametrize(
    "other",
    [
        ("a", None, "b c"),
        ("a b c", None, ""),
        ("a b", "c", ""),
        ("a b", "", "c d"),
        ("", "a b", "c"),
    ],
)
def test_parts_are_kept_apart(other):
    assert hash_pair(*other) != hash_pair("a b", None, "c")


@pytest.mark.parametrize("length", [1, 20])
def test_memory_is_that_of_the_hashes(length):
    seen = SeenPairs()
    tracemalloc.start()
    for number in range(10_000):
        assert seen.add(f"query {number} " * length, None, f"answer {number}") is None
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 120 * 10_000
