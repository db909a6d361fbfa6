"""Where the newest row of each query and sample is, in 27 bytes each.

N keys lie sorted in one array, with what is known of each in another. What comes in waits in a
small dict, which is merged in when full: a lookup is a dict's or a binary search, and memory is
`27 N` bytes, twice that for the moment of a merge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_MAX_RECENT = 4096
_ENTRY = np.dtype([("offset", "<i8"), ("input_hash", "<u8"), ("attempt", "<u2"), ("status", "u1")])


class Entry(NamedTuple):
    """What is known of a row without reading it.

    Args:
        offset: Where its line begins, in bytes.
        input_hash: Its input hash, as an integer.
        attempt: Which attempt it was, from 1.
        status: Its status, as a place in `STATUSES`.
    """

    offset: int
    input_hash: int
    attempt: int
    status: int


class NewestIndex:
    """The newest entry of each key; what is set last counts."""

    def __init__(self) -> None:
        self._keys: np.ndarray[Any, np.dtype[np.int64]] = np.empty(0, np.int64)
        self._entries: np.ndarray[Any, np.dtype[Any]] = np.empty(0, _ENTRY)
        self._recent: dict[int, Entry] = {}

    def set(self, key: int, entry: Entry) -> None:
        """Make an entry the newest of a key."""
        self._recent[key] = entry
        if len(self._recent) >= _MAX_RECENT:
            self._merge()

    def get(self, key: int) -> Entry | None:
        """Return the newest entry of a key, or None if it has none."""
        if (entry := self._recent.get(key)) is not None:
            return entry
        place = int(self._keys.searchsorted(key))
        if place == len(self._keys) or self._keys[place] != key:
            return None
        return Entry(*self._entries[place].item())

    def sort_offsets(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return `[N]` where the newest rows begin, in the order of the file."""
        self._merge()
        return np.sort(self._entries["offset"])

    def _merge(self) -> None:
        if not self._recent:
            return
        keys = np.fromiter(self._recent, np.int64, len(self._recent))
        entries = np.array(list(self._recent.values()), _ENTRY)
        order = keys.argsort()
        keys, entries = keys[order], entries[order]
        places = self._keys.searchsorted(keys)
        is_new = np.ones(len(keys), bool)
        inside = places < len(self._keys)
        is_new[inside] = self._keys[places[inside]] != keys[inside]
        self._entries[places[~is_new]] = entries[~is_new]
        self._keys = np.insert(self._keys, places[is_new], keys[is_new])
        self._entries = np.insert(self._entries, places[is_new], entries[is_new])
        self._recent.clear()
