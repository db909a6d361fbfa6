"""The training batches of an epoch, from the one where training stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from tracelib.types import TrainBatch


class TrainLoader:
    """Batches that are chosen when the first is asked for, not when Lightning makes the iterator.

    Lightning does that before it knows what was trained already, and twice an epoch.

    Args:
        build: Makes the loader of what is left of the current epoch.
        num_batches: Batches of a whole epoch.
    """

    def __init__(self, build: Callable[[], DataLoader[TrainBatch]], num_batches: int) -> None:
        self.build, self.num_batches = build, num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[TrainBatch]:
        yield from self.build()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the trainer's progress tells where to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that nothing; with it Lightning knows that a run can go on amid an epoch."""
