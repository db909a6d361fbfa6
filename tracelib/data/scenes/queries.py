"""Draws the queries, candidates and distractors of a split of Scenes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from random import Random

from tracelib.data.records import TASK_MODALITIES
from tracelib.data.scenes import wording
from tracelib.data.scenes.world import Operation, Scene, Split, sample_chain, sample_scene

DATASET_ID = 10
MIN_POOL_SIZE = {"val": 300, "test": 1000}
_LENGTH_SHARES = {
    **dict.fromkeys((0, 1, 2), (0.3, 0.2)),
    **dict.fromkeys((3, 4), (0.0, 0.0)),
    **dict.fromkeys((6, 7, 8), (0.7, 1.0)),
}
"""Per task the share of hard queries (2 .. 4 operations), and of 1 operation among easy ones."""


@dataclass(eq=False)
class DrawnCandidate:
    """A candidate; its id is set once its pool is shuffled."""

    scene: Scene
    modality: str
    text: str | None
    image_path: str | None
    candidate_id: str = ""


@dataclass(eq=False)
class DrawnQuery:
    """A query; `states` runs from its source to its target."""

    query_id: str
    task_id: int
    text: str | None
    image_path: str | None
    states: list[Scene]
    positive: DrawnCandidate
    negatives: list[DrawnCandidate] = field(default_factory=list)


class DrawnSplit:
    """The queries, pools and pictures of a split; no scene is drawn for two queries.

    Args:
        split: Split of every scene.
        seed: Seed of the tree.
    """

    def __init__(self, split: Split, seed: int) -> None:
        self.split, self.seed = split, seed
        self.rng = Random(f"scenes {seed} {split}")
        self.queries: list[DrawnQuery] = []
        self.pools: dict[int, dict[Scene, DrawnCandidate]] = {
            task_id: {} for task_id in TASK_MODALITIES
        }
        self.pictures: list[Scene] = []
        self._source_pictures: dict[Scene, str] = {}
        self._used: set[Scene] = set()

    def add_queries(self, num_queries: int) -> None:
        """Draw as many queries of each task, then fill val and test pools with random scenes."""
        num_draws = num_queries // len(TASK_MODALITIES) // (2 if self.split == "train" else 1)
        lengths = {
            task_id: _plan_lengths(task_id, num_draws, self.rng) for task_id in TASK_MODALITIES
        }
        add = self._add_train_pair if self.split == "train" else self._add_test_query
        for draw, task_id in itertools.product(range(num_draws), TASK_MODALITIES):
            add(task_id, lengths[task_id][draw])
        if self.split == "train":
            return
        for task_id, pool in self.pools.items():
            while len(pool) < MIN_POOL_SIZE[self.split]:
                if self._claim([scene := sample_scene(self.rng, self.split)]):
                    self._add_candidate(task_id, scene)

    def _add_train_pair(self, task_id: int, length: int) -> None:
        """Add two queries with the same operations whose sources differ in one attribute."""
        if task_id == 3:
            return  # Task 3 asks for the captions of the cards that task 6 edits, in its pictures.
        while True:
            operations, states = self._sample(length)
            other = [self.rng.choice(states[0].neighbours())]
            for operation in operations:
                other.append(operation.apply(other[-1]))
            is_valid = len(set(other)) == len(other) and all(
                state.split == self.split for state in other
            )
            meets = operations and (states[0] == other[-1] or states[-1] == other[0])
            if is_valid and not meets and self._claim([*states, *other]):
                break
        self._add_rivals(task_id, operations, states, other)
        if task_id == 6:
            self._add_rivals(3, [], states[:1], other[:1])

    def _add_rivals(
        self, task_id: int, operations: list[Operation], states: list[Scene], other: list[Scene]
    ) -> None:
        """Add two queries, each with the other's target as its negative unless it is its own."""
        first, second = (self._add_query(task_id, operations, chain) for chain in (states, other))
        if first.positive is not second.positive:
            first.negatives.append(second.positive)
            second.negatives.append(first.positive)

    def _add_test_query(self, task_id: int, length: int) -> None:
        """Add a query; the states before its target and two neighbours of it are distractors."""
        while True:
            operations, states = self._sample(length)
            free = [
                n
                for n in states[-1].neighbours()
                if n.split == self.split and n not in {*self._used, *states}
            ]
            if len(free) >= 2 and self._claim([*states, *(neighbours := self.rng.sample(free, 2))]):
                break
        query = self._add_query(task_id, operations, states)
        for number, state in enumerate([*states[:-1], *neighbours]):
            image_path = query.image_path if operations and not number else None
            query.negatives.append(self._add_candidate(task_id, state, image_path))

    def _sample(self, length: int) -> tuple[list[Operation], list[Scene]]:
        return (
            sample_chain(self.rng, length, self.split)
            if length
            else ([], [sample_scene(self.rng, self.split)])
        )

    def _claim(self, states: list[Scene]) -> bool:
        """Mark scenes as used, unless one of them is."""
        if not self._used.isdisjoint(states):
            return False
        self._used.update(states)
        return True

    def _add_query(
        self, task_id: int, operations: list[Operation], states: list[Scene]
    ) -> DrawnQuery:
        modality = TASK_MODALITIES[task_id][0]
        text = wording.write_edits(operations) if operations else None
        if modality == "text":
            text = wording.write_caption(states[0], self.rng)
            text = wording.write_recipe(text, operations) if operations else text
        image_path = None
        if "image" in modality:
            image_path = self._source_pictures.get(states[0]) or self._add_picture(states[0])
            self._source_pictures[states[0]] = image_path
        positive = self._add_candidate(task_id, states[-1])
        query_id = f"{DATASET_ID}:{len(self.queries) + 1}"
        self.queries.append(DrawnQuery(query_id, task_id, text, image_path, states, positive))
        return self.queries[-1]

    def _add_candidate(
        self, task_id: int, scene: Scene, image_path: str | None = None
    ) -> DrawnCandidate:
        """Return the pool's candidate of `scene`, shown by picture `image_path` if there is one."""
        if scene not in self.pools[task_id]:
            modality = TASK_MODALITIES[task_id][1]
            text = None
            if "text" in modality:
                is_caption = task_id in (3, 6)
                text = (
                    wording.write_caption(scene, self.rng)
                    if is_caption
                    else wording.write_passage(scene)
                )
            image_path = (image_path or self._add_picture(scene)) if "image" in modality else None
            self.pools[task_id][scene] = DrawnCandidate(scene, modality, text, image_path)
        return self.pools[task_id][scene]

    def _add_picture(self, scene: Scene) -> str:
        self.pictures.append(scene)
        return f"mbeir_images/scenes/{self.split}/{len(self.pictures)}.png"


def _plan_lengths(task_id: int, num: int, rng: Random) -> list[int]:
    """Return the chain length of each of `num` queries of a task: exact shares in random order."""
    hard_share, one_share = _LENGTH_SHARES[task_id]
    num_hard = round(hard_share * num)
    num_one = round(one_share * (num - num_hard))
    lengths = (
        [2 + i % 3 for i in range(num_hard)] + [1] * num_one + [0] * (num - num_hard - num_one)
    )
    rng.shuffle(lengths)
    return lengths
