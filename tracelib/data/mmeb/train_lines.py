"""MMEB's training pairs as lines of M-BEIR's files.

A query keeps the number of its row, a candidate its number in the subset; each subset is a data set
of its own, from id 100 on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tracelib.data.jsonl import DataError
from tracelib.data.layout import Layout
from tracelib.data.mmeb.pairs import TrainPair, TrainPairs
from tracelib.data.mmeb.subsets import TRAIN_SUBSETS
from tracelib.data.records import TASK_MODALITIES
from tracelib.types import Candidate

FIRST_DATASET_ID = 100
"""Data set id of the first training subset; the others follow in their order."""


@dataclass(frozen=True)
class SubsetRows:
    """The pairs of a subset as lines of M-BEIR's files.

    Args:
        name: Name of the subset.
        pairs: Its pairs.
        num_val: Pairs to keep out of training, at most a tenth.
        images: Folder of the pictures, from the root on.
    """

    name: str
    pairs: TrainPairs
    num_val: int
    images: Path

    @property
    def dataset(self) -> str:
        """Its name among M-BEIR's data sets."""
        return f"mmeb_{self.name}"

    @property
    def dataset_id(self) -> int:
        """The first half of its ids."""
        return FIRST_DATASET_ID + TRAIN_SUBSETS.index(self.name)

    @cached_property
    def val_rows(self) -> set[int]:
        """Places of the val pairs, evenly spread."""
        num_val = max(1, min(self.num_val, len(self.pairs) // 10))
        return set(np.linspace(0, len(self.pairs) - 1, num_val).astype(int).tolist())

    def list_files(self, layout: Layout) -> Iterator[tuple[Path, Iterable[str]]]:
        """Yield each file of the subset alone with its lines: queries, val pools and val qrels."""
        train = (self.pairs[i] for i in range(len(self.pairs)) if i not in self.val_rows)
        queries = (self._format_query(pair, self._number(pair)) for pair in train)
        yield layout.query(self.dataset, "train"), queries
        columns: dict[str, list[TrainPair]] = {}
        for place in sorted(self.val_rows):
            pair = self.pairs[place]
            columns.setdefault(f"{self.dataset}_task{pair.query.task_id}", []).append(pair)
        number = int(self.pairs.numbers.max())
        for column, pairs in columns.items():
            pool = {c.candidate_id: c for p in pairs for c in (p.positive, *p.negatives)}
            # A candidate of val has an id of its own: it may be in train and in other columns too.
            ids = {name: f"{self.dataset_id}:{number + i}" for i, name in enumerate(pool, 1)}
            number += len(pool)
            yield (
                layout.pool(column, "val"),
                [self._format_candidate(candidate, ids[name]) for name, candidate in pool.items()],
            )
            yield layout.query(column, "val"), [self._format_query(pair, ids) for pair in pairs]
            yield (
                layout.qrels(column, "val"),
                [
                    f"{self.number_query(pair.query.query_id)} 0 {ids[pair.positive.candidate_id]} "
                    f"1 {pair.query.task_id}\n"
                    for pair in pairs
                ],
            )

    def iterate_candidates(self) -> Iterator[str]:
        """Yield the train pool, each candidate where it is met first."""
        numbers = self.pairs.numbers.copy()
        numbers[list(self.val_rows)] = 0
        found, first = np.unique(numbers, return_index=True)
        new = set(found[found > 0].tolist())
        for place in np.unique(first[found > 0] // numbers.shape[1]).tolist():
            pair = self.pairs[place]
            for candidate in (pair.positive, *pair.negatives):
                number = int(candidate.candidate_id.rpartition(":")[2])
                if number in new:
                    new.remove(number)
                    yield self._format_candidate(candidate, f"{self.dataset_id}:{number}")

    def number_query(self, query_id: str) -> str:
        """Return the id `D:N` of a query `SUBSET:N`."""
        return f"{self.dataset_id}:{query_id.rpartition(':')[2]}"

    def _number(self, pair: TrainPair) -> dict[str, str]:
        """Return the train pool's id of each candidate of a pair."""
        names = [candidate.candidate_id for candidate in (pair.positive, *pair.negatives)]
        return {name: f"{self.dataset_id}:{name.rpartition(':')[2]}" for name in names}

    def _format_query(self, pair: TrainPair, ids: Mapping[str, str]) -> str:
        query = pair.query
        if query.task_id not in TASK_MODALITIES:
            raise DataError(
                f"query {query.query_id}: a picture without text asks for a picture with text, and "
                "M-BEIR has no such task; give the query a text (query_rewrites)"
            )
        return _format_line(
            {
                "qid": self.number_query(query.query_id),
                "query_txt": query.text or None,
                "query_img_path": self._place_image(query.image_path),
                "query_modality": TASK_MODALITIES[query.task_id][0],
                "query_src_content": None,
                "pos_cand_list": [ids[pair.positive.candidate_id]],
                "neg_cand_list": [ids[candidate.candidate_id] for candidate in pair.negatives],
                "task_id": query.task_id,
            }
        )

    def _format_candidate(self, candidate: Candidate, candidate_id: str) -> str:
        return _format_line(
            {
                "did": candidate_id,
                "txt": candidate.text or None,
                "img_path": self._place_image(candidate.image_path),
                "modality": candidate.modality,
                "src_content": None,
            }
        )

    def _place_image(self, path: str | None) -> str | None:
        return None if path is None else (self.images / path).as_posix()


def _format_line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"
