"""Which training queries share a batch: a function of (seed, epoch, rank) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal

from torch.utils.data import Sampler

from tracelib.types import Query

TaskMixing = Literal["mixed", "one_task_per_batch"]


def cluster_rivals(queries: Sequence[Query]) -> list[int]:
    """Return a number per query that it shares with the query whose positive is its negative.

    In one batch such rivals are each other's hard negatives, at no extra cost.
    """
    owners = {query.positive_ids[0]: index for index, query in enumerate(queries)}
    return [
        min([index, *(owners[i] for i in query.negative_ids[:1] if i in owners)])
        for index, query in enumerate(queries)
    ]


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
        clusters: A number per query; queries of one number are kept next to each other. None keeps
            none together.

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
        clusters: Sequence[int] | None = None,
    ) -> None:
        self.seed, self.epoch, self.rank = seed, 0, rank
        self.batch_size, self.global_batch_size = batch_size, batch_size * world_size
        groups: dict[int, dict[int, list[int]]] = {}
        for index, task_id in enumerate(task_ids):
            group = groups.setdefault(task_id if mixing == "one_task_per_batch" else 0, {})
            group.setdefault(clusters[index] if clusters else index, []).append(index)
        # Per task, the clusters that are shuffled as wholes.
        self.groups = [list(groups[key].values()) for key in sorted(groups)]
        sizes = [sum(map(len, group)) for group in self.groups]
        self.num_batches = sum(size // self.global_batch_size for size in sizes)
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
            shuffled = rng.sample(group, len(group))
            order = [index for cluster in shuffled for index in cluster]
            stop = len(order) - len(order) % self.global_batch_size
            batches += [
                order[i : i + self.global_batch_size]
                for i in range(0, stop, self.global_batch_size)
            ]
        rng.shuffle(batches)
        start = self.rank * self.batch_size
        for batch in batches:
            yield batch[start : start + self.batch_size]
