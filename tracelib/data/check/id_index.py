"""Sorted arrays of integer ids, in the place of dictionaries of millions of them.

Shapes: L lines, N ids asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class IdIndex:
    """Finds the places of ids; where an id repeats, its first place.

    Args:
        ids: `[L]` ids, -1 for none.
    """

    def __init__(self, ids: Ints) -> None:
        order = np.argsort(ids, kind="stable")
        self._order = order[np.searchsorted(ids[order], 0) :]
        self._ids, self._sorted = ids, ids[self._order]

    def __len__(self) -> int:
        return len(self._sorted)

    def find(self, ids: Ints) -> Ints:
        """Return the places `[N]` of ids `[N]`, -1 where an id is absent.

        >>> IdIndex(np.array([7, -1, 3, 7])).find(np.array([3, 7, 8, -1]))
        array([ 2,  0, -1, -1])
        """
        if not len(self._sorted):
            return np.full(len(ids), -1, dtype=np.int64)
        at = np.searchsorted(self._sorted, ids)
        at[at == len(self._sorted)] = 0
        return np.where(self._sorted[at] == ids, self._order[at], -1)

    def find_repeats(self) -> tuple[Ints, Ints]:
        """Return the places of ids that came before, in order, and where each came first.

        >>> IdIndex(np.array([7, -1, 3, 7, -1])).find_repeats()
        (array([3]), array([0]))
        """
        is_repeat = self._sorted[1:] == self._sorted[:-1]
        places = np.sort(self._order[1:][is_repeat])
        return places, self.find(self._ids[places])
