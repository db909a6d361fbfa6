"""Which training queries share a batch: a function of (seed, epoch, rank) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

TaskMixing = Literal["mixed", "one_task_per_batch"]


class TaskBatchSampler(Sampler[list[int]]):
    """Yields this rank's part of each global batch; incomplete global batches are dropped.

    Args:
        task_ids: Task of each training query.
        batch_size: Queries per batch and rank.
        mixing: `one_task_per_batch` draws each global batch from one task, so that in-batch
            negatives have the positive's modality (a form of TRACE's task-aware sampling, section
            4.1); `mixed` draws from all.
        seed: Seed of the order.
        rank: This process's rank.
        world_size: Number of ranks.

    Raises:
        ValueError: No global batch can be filled.
    """

    def __init__(
        self,
        task_ids: Sequence[int],
        batch_size: int,
        mixing: TaskMixing,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.seed, self.epoch, self.rank = seed, 0, rank
        self.batch_size, self.global_batch_size = batch_size, batch_size * world_size
        groups: dict[int, list[int]] = {}
        for index, task_id in enumerate(task_ids):
            groups.setdefault(task_id if mixing == "one_task_per_batch" else 0, []).append(index)
        self.groups = [groups[key] for key in sorted(groups)]
        self.num_batches = sum(len(group) // self.global_batch_size for group in self.groups)
        if not self.num_batches:
            raise ValueError(
                f"{len(task_ids)} training queries, {mixing}, fill no global batch "
                f"of {self.global_batch_size} (lower data.batch_size)"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = Random(f"batches {self.seed} {self.epoch}")
        batches = []
        for group in self.groups:
            order = rng.sample(group, len(group))
            stop = len(order) - len(order) % self.global_batch_size
            batches += [
                order[i : i + self.global_batch_size]
                for i in range(0, stop, self.global_batch_size)
            ]
        rng.shuffle(batches)
        start = self.rank * self.batch_size
        for batch in batches:
            yield batch[start : start + self.batch_size]


def describe_untrained_tasks(task_ids: NDArray[np.int8], global_batch_size: int) -> str:
    """Return a sentence on tasks that fill no global batch of their own, or "".

    >>> describe_untrained_tasks(np.array([0, 0, 3], np.int8), 2)
    'tasks of fewer than 2 train queries are never trained (data.task_mixing): task 3 (1)'
    """
    found, counts = np.unique(task_ids, return_counts=True)
    small = counts < global_batch_size
    pairs = zip(found[small].tolist(), counts[small].tolist(), strict=True)
    names = ", ".join(f"task {task_id} ({count})" for task_id, count in pairs)
    limit = f"tasks of fewer than {global_batch_size} train queries"
    return f"{limit} are never trained (data.task_mixing): {names}" if names else ""
