"""Remembers the pictures that are fine, for the next run.

Shapes: K keys.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


class PictureMemory:
    """The keys of pictures that are fine, in a file that only grows.

    A killed run leaves whole keys and perhaps a part of one, which the next run cuts off.

    Args:
        path: The file.
        fresh: Whether to forget everything.
    """

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        with path.open("wb" if fresh else "ab") as file:
            file.truncate(file.tell() // 8 * 8)
        self._known = np.sort(np.fromfile(path, dtype="<u8"))

    def knows(self, keys: Keys) -> NDArray[np.bool_]:
        """Return whether each key `[K]` was there at the start."""
        if not len(self._known):
            return np.zeros(len(keys), dtype=bool)
        at = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
        known: NDArray[np.bool_] = self._known[at] == keys
        return known

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, keys: Keys) -> None:
        """Add keys `[K]` to the file."""
        with self.path.open("ab", buffering=0) as file:
            file.write(keys.astype("<u8").tobytes())
