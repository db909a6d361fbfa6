import random

import pytest

from tracelib.construction.journal.newest_index import Entry, NewestIndex
from tracelib.construction.journal.row_key import pack_key


@pytest.fixture(scope="module")
def filled():
    """An index and the dict that it must equal: keys of all sizes, many of them set again."""
    rng, index, expected = random.Random(0), NewestIndex(), {}
    for offset in range(60_000):
        key = pack_key(f"{rng.choice((0, 9, 131_071))}:{rng.randrange(12_000)}", rng.randrange(2))
        expected[key] = Entry(
            offset, rng.choice((0, 2**64 - 1, offset)), offset % 65_536, offset % 4
        )
        index.set(key, expected[key])
    return index, expected


def test_an_index_is_what_a_dict_is(filled):
    index, expected = filled
    assert all(index.get(key) == entry for key, entry in expected.items())
    others = [pack_key(f"8:{number}", 0) for number in range(100)] + [0, 2**63 - 1]
    assert all(index.get(key) == expected.get(key) for key in others)


def test_offsets_are_in_order(filled):
    index, expected = filled
    assert index.sort_offsets().tolist() == sorted(entry.offset for entry in expected.values())


def test_an_empty_index_has_nothing():
    index = NewestIndex()
    assert index.get(3) is None
    assert index.sort_offsets().tolist() == []
