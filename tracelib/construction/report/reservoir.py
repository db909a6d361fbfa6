"""A fair sample of a stream whose length nobody knows."""

from __future__ import annotations

import random
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Keeps `size` of the items it is shown, each with the same chance.

    The same items in the same order with the same seed give the same sample in every process.

    Args:
        size: Most items kept, 0 and above.
        seed: Words or numbers that the choice depends on.

    >>> reservoir = Reservoir[int](2, "seed")
    >>> for item in range(100):
    ...     reservoir.offer(item)
    >>> len(reservoir.items), reservoir.num_offered
    (2, 100)
    """

    def __init__(self, size: int, seed: str) -> None:
        self.items: list[T] = []
        self.num_offered = 0
        self._size = size
        self._random = random.Random(seed)

    def offer(self, item: T) -> None:
        """Show an item; it may take the place of another."""
        self.num_offered += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (place := self._random.randrange(self.num_offered)) < self._size:
            self.items[place] = item
