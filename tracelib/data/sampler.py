"""Which training queries share a batch: a function of (seed, epoch) alone, whatever the ranks.

Shapes: Q training queries, K tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Ints = NDArray[np.int64]
TaskMixing = Literal["mixed", "one_task_per_batch"]
_OFFSETS = 1 << 20


class TaskBatchSampler(Sampler[list[int]]):
    """Yields this rank's part of each global batch; incomplete global batches are dropped.

    A task's share of an epoch is in proportion to (weight x size) ** (1 / temperature), where its
    size is its number of queries, or of whole batches if each batch has one task. Neither changes
    the number of batches: small tasks are repeated in reshuffled rounds, large ones cut. A batch
    holds a query twice only where it takes more queries of a task than there are.

    Args:
        task_ids: `[Q]` task of each training query.
        batch_size: Queries per batch over all ranks.
        mixing: `one_task_per_batch` draws each global batch from one task, so that in-batch
            negatives have the positive's modality (a form of TRACE's task-aware sampling, section
            4.1); `mixed` draws from all.
        seed: Seed of the order.
        rank: This process's rank.
        world_size: Number of ranks.
        weights: Weight of single tasks, >= 0; the others have 1.
        temperature: Evens out the shares, > 0: 1 keeps them, a large one makes them equal.
        first_batch: Batches of the epoch that are left out, trained on already.

    Raises:
        ValueError: No batch can be filled, the ranks cannot share one evenly, or a weight, the
            temperature or `first_batch` is out of its range.
    """

    def __init__(
        self,
        task_ids: NDArray[np.int8],
        batch_size: int,
        mixing: TaskMixing,
        seed: int,
        rank: int,
        world_size: int,
        weights: Mapping[int, float] | None = None,
        temperature: float = 1.0,
        first_batch: int = 0,
    ) -> None:
        self.seed, self.epoch, self.rank, self.first_batch = seed, 0, rank, first_batch
        if batch_size % world_size:
            raise ValueError(
                f"contrastive_batch_size {batch_size} is no multiple of {world_size} processes "
                "(data.contrastive_batch_size)"
            )
        self.batch_size, self.part_size = batch_size, batch_size // world_size
        # What is drawn from the tasks: single queries, or the queries of a batch together.
        self.draw_size = batch_size if mixing == "one_task_per_batch" else 1
        groups = {int(task): np.flatnonzero(task_ids == task) for task in np.unique(task_ids)}
        sizes = {task: len(group) // self.draw_size for task, group in groups.items()}
        self.num_batches = sum(sizes.values()) * self.draw_size // batch_size
        if not self.num_batches:
            raise ValueError(
                f"{len(task_ids)} training queries, {mixing}, fill no global batch "
                f"of {batch_size} (lower data.contrastive_batch_size)"
            )
        if not 0 <= first_batch <= self.num_batches:
            raise ValueError(
                f"first_batch is {first_batch}, allowed 0 .. {self.num_batches}, an epoch's "
                "batches: resume with the data.contrastive_batch_size and data.task_mixing that "
                "the run began with"
            )
        shares = compute_task_shares(sizes, weights or {}, temperature)
        self.groups = [groups[task] for task in shares]
        self.edges = np.cumsum(list(shares.values()))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        # Python's generator takes any seed, numpy's no negative one.
        words = Random(f"batches {self.seed} {self.epoch}").getrandbits(64)
        rng = np.random.default_rng(words)
        undrawn = self._count_draws(rng)
        rounds = [_Rounds(group, rng) for group in self.groups]
        start = self.rank * self.part_size
        for number in range(self.num_batches):
            # As if all draws of the epoch were shuffled and the next ones taken.
            counts = rng.multivariate_hypergeometric(undrawn, self.batch_size // self.draw_size)
            undrawn -= counts
            drawn = [rounds[k].draw(counts[k] * self.draw_size) for k in np.flatnonzero(counts)]
            batch = rng.permutation(np.concatenate(drawn))
            if number >= self.first_batch:
                yield batch[start : start + self.part_size].tolist()

    def _count_draws(self, rng: np.random.Generator) -> Ints:
        """Return `[K]` how often each task is drawn in an epoch."""
        num_draws = self.num_batches * self.batch_size // self.draw_size
        # A random offset rounds each share up or down, and right on average over the epochs: no
        # small task is rounded away for good. Six decimals are all that is exact.
        edges = np.round(self.edges * num_draws, 6) + rng.integers(_OFFSETS) / _OFFSETS
        draws: Ints = np.diff(np.floor(edges).astype(np.int64), prepend=0)
        return draws


class _Rounds:
    """The queries of one task: each is drawn once, then each once more in another order.

    Args:
        places: Places of the queries.
        rng: Where the orders come from.
    """

    def __init__(self, places: Ints, rng: np.random.Generator) -> None:
        self.places, self.rng = places, rng
        self.remaining = rng.permutation(places)

    def draw(self, count: int) -> Ints:
        """Return the next `count` queries, distinct if there are so many."""
        drawn, self.remaining = self.remaining[:count], self.remaining[count:]
        while len(drawn) < count:
            fresh = self.rng.permutation(self.places)
            is_drawn = np.isin(fresh, drawn)
            fresh = np.concatenate([fresh[~is_drawn], fresh[is_drawn]])
            missing = count - len(drawn)
            drawn = np.concatenate([drawn, fresh[:missing]])
            self.remaining = fresh[missing:]
        return drawn


def compute_task_shares(
    sizes: Mapping[int, int], weights: Mapping[int, float], temperature: float
) -> dict[int, float]:
    """Return the share of each task that has one, in proportion to (w x size) ** (1 / temperature).

    Args:
        sizes: Size of each task by its id.
        weights: Weights w by task id, >= 0; 1 for a task that is not named.
        temperature: Evens out the shares, > 0.

    Raises:
        ValueError: A weight or the temperature is out of its range, a weight is of a task without
            training queries, or no task is left.

    >>> compute_task_shares({0: 900, 7: 100}, {}, 2.0)
    {0: 0.75, 7: 0.25}
    """
    if not (isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"mixing_temperature is {temperature}, must be > 0 and finite (data.mixing_temperature)"
        )
    for task, weight in weights.items():
        if task not in sizes:
            raise ValueError(
                f"a weight is given for task {task}, but the training queries are of tasks "
                f"{sorted(sizes)} (data.task_weights)"
            )
        if not (isfinite(weight) and weight >= 0):
            raise ValueError(
                f"the weight of task {task} is {weight}, must be >= 0 and finite "
                "(data.task_weights)"
            )
    masses = {task: weights.get(task, 1.0) * size for task, size in sizes.items()}
    masses = {task: mass for task, mass in masses.items() if mass > 0}
    if not masses:
        raise ValueError("no task with queries has a weight above 0 (data.task_weights)")
    largest = max(masses.values())  # a power of at most 1 cannot overflow
    powers = {task: (mass / largest) ** (1 / temperature) for task, mass in masses.items()}
    total = sum(powers.values())
    return {task: power / total for task, power in powers.items()}


def describe_untrained_tasks(task_ids: NDArray[np.int8], batch_size: int) -> str:
    """Return a sentence on tasks that fill no global batch of their own, or "".

    >>> describe_untrained_tasks(np.array([0, 0, 3], np.int8), 2)
    'tasks of fewer than 2 train queries are never trained (data.task_mixing): task 3 (1)'
    """
    found, counts = np.unique(task_ids, return_counts=True)
    small = counts < batch_size
    pairs = zip(found[small].tolist(), counts[small].tolist(), strict=True)
    names = ", ".join(f"task {task_id} ({count})" for task_id, count in pairs)
    limit = f"tasks of fewer than {batch_size} train queries"
    return f"{limit} are never trained (data.task_mixing): {names}" if names else ""
