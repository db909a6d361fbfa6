"""The queries that rationales are written for, each with the target that it looks for.

Shapes: Q queries of the split, S of them selected.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracelib.construction.source_captions import SourceCaptions
from tracelib.data.evaluation_set import EvaluationSet
from tracelib.data.mbeir import DataError, MBEIRReader
from tracelib.data.query_table import QueryTable
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    TASK_MODALITIES,
    decode_id,
    encode_id,
)
from tracelib.data.tables import CandidateTable, Ints

_CHUNK = 256
_MAX_CHUNKS = 8  # what is in flight lies in few chunks; retries come in the same order again
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class SourceQuery:
    """A query, and the first of its positives.

    Args:
        query_id: `D:N`, unique within a split only.
        dataset: Data set as file names have it, such as `cirr`.
        task_id: M-BEIR task.
        text: Its own text, formatted, `""` for none.
        image_path: Its picture, relative to the data root, or None.
        instruction: First prompt of its instruction row, formatted.
        target_id: Candidate id of the target.
        target_text: Text of the target, formatted, `""` for none.
        target_image_path: Picture of the target, relative to the data root, or None.
        source_caption: Caption of the query's picture, where the tree has one.
        positive_ids: Candidate ids of all its positives, the target among them.
    """

    query_id: str
    dataset: str
    task_id: int
    text: str
    image_path: str | None
    instruction: str
    target_id: str
    target_text: str
    target_image_path: str | None
    source_caption: str | None
    positive_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuerySettings:
    """Which queries of which data tree.

    Args:
        root: Data root: an M-BEIR tree.
        split: `train`, `val` or `test`.
        datasets: Data sets as file names have them, such as `cirr`; null takes all.
        tasks: M-BEIR tasks; null takes all.
        max_queries: Most queries, 1 and above, spread over all that remain; more queries are those
            and others. null takes all.
        cache_dir: Folder to keep tables in; null keeps them in the data root.

    Raises:
        ValueError: `max_queries` or a task is out of its range.
    """

    root: Path
    split: str = "train"
    datasets: list[str] | None = None
    tasks: list[int] | None = None
    max_queries: int | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.max_queries is not None and self.max_queries < 1:
            raise ValueError(f"data.max_queries is {self.max_queries}; allowed 1 and above, null")
        if unknown := [task for task in self.tasks or [] if task not in TASK_MODALITIES]:
            raise ValueError(f"data.tasks has {unknown[0]}; allowed are {list(TASK_MODALITIES)}")


class SourceQueries:
    """The queries of a tree, in the same order always, read when they are asked for.

    Args:
        settings: Which queries.

    Attributes:
        settings: As given.
        root: Data root that the pictures' paths are relative to.
        dataset_names: Data sets of the queries.

    Raises:
        DataError: A file of the tree breaks its format, or a query has no positive in the pools.
        ValueError: No query is selected, or a data set is not in the split.
    """

    def __init__(self, settings: QuerySettings) -> None:
        self.settings, self.root = settings, settings.root
        reader = MBEIRReader(settings.root, settings.cache_dir)
        if settings.split == "train":
            self._table = reader.read_queries("train")
            self._pool = reader.read_union_pool("train")
        else:
            records: EvaluationSet = reader.read_evaluation_set(settings.split)
            self._table, self._pool = records.queries, records.candidates
        names = [file.dataset or "" for file in self._table.files]
        self._places = _select_places(self._table, names, settings)
        self._targets = _find_targets(self._table, self._pool, self._places, settings.root)
        self._captions = SourceCaptions(self._table, self._pool)
        numbers = self._table.ids[self._places]
        self._order = numbers.argsort()
        self._numbers = numbers[self._order]
        self._chunks: OrderedDict[int, list[SourceQuery]] = OrderedDict()
        counts = [int(np.isin(self._places, span).sum()) for span in self._table.spans]
        kept = [name for name, count in zip(names, counts, strict=True) if count]
        self.dataset_names = list(dict.fromkeys(kept))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[SourceQuery]:
        for start in range(0, len(self), _CHUNK):
            yield from self._make(range(start, min(start + _CHUNK, len(self))))

    def find(self, query_id: str) -> SourceQuery:
        """Return the query with an id.

        Raises:
            ValueError: It is none of these queries.
        """
        number = encode_id(query_id, MAX_QUERY_NUMBER)
        place = int(self._numbers.searchsorted(number))
        if place == len(self) or self._numbers[place] != number:
            raise ValueError(f"query {query_id!r} is none of the {len(self)} that are selected")
        chunk, spot = divmod(int(self._order[place]), _CHUNK)
        if chunk not in self._chunks:
            stop = min((chunk + 1) * _CHUNK, len(self))
            self._chunks[chunk] = self._make(range(chunk * _CHUNK, stop))
            if len(self._chunks) > _MAX_CHUNKS:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(chunk)
        return self._chunks[chunk][spot]

    def _make(self, spots: range) -> list[SourceQuery]:
        window = slice(spots.start, spots.stop)
        queries = self._table.take(self._places[window])
        targets = self._pool.take(self._targets[window])
        return [
            SourceQuery(
                query.query_id,
                query.column.rpartition("_task")[0],
                query.task_id,
                query.text,
                query.image_path,
                query.instruction,
                target.candidate_id,
                target.text,
                target.image_path,
                caption,
                query.positive_ids,
            )
            for query, target, caption in zip(
                queries, targets, self._captions.find(queries), strict=True
            )
        ]


def _select_places(table: QueryTable, names: Sequence[str], settings: QuerySettings) -> Ints:
    """Return the places `[S]` of the selected queries, rising."""
    if unknown := sorted(set(settings.datasets or []) - set(names)):
        raise ValueError(
            f"data.datasets has {unknown[0]!r}; split {settings.split!r} of {settings.root} has "
            f"{sorted(set(names))}"
        )
    is_kept = np.zeros(len(table), bool)
    for name, span in zip(names, table.spans, strict=True):
        is_kept[span.start : span.stop] = settings.datasets is None or name in settings.datasets
    if settings.tasks is not None:
        is_kept &= np.isin(table.task_ids, settings.tasks)
    places = np.flatnonzero(is_kept)
    if not len(places):
        raise ValueError(
            f"no query of split {settings.split!r} of {settings.root} is of data.datasets "
            f"{settings.datasets} and data.tasks {settings.tasks}"
        )
    if settings.max_queries is None or settings.max_queries >= len(places):
        return places
    chosen = _mix_bits(table.ids[places]).argsort(kind="stable")[: settings.max_queries]
    return np.sort(places[chosen])


def _mix_bits(numbers: Ints) -> NDArray[np.uint64]:
    """Return a scrambled number of each id `[S]`, so that the lowest are a fixed random choice."""
    mixed: NDArray[np.uint64] = numbers.astype(np.uint64) * _MIX
    for shift in (np.uint64(30), np.uint64(27), np.uint64(31)):
        mixed = (mixed ^ (mixed >> shift)) * _MIX
    return mixed


def _find_targets(table: QueryTable, pool: CandidateTable, places: Ints, root: Path) -> Ints:
    """Return the place `[S]` in the pool of each query's first positive that is there."""
    offsets, ids = table.positives
    found = pool.find(ids)
    # The spots of those that are in the pool: the first one at or after a query's own begin.
    spots = np.flatnonzero(found >= 0)
    first = np.append(spots, len(ids))[np.searchsorted(spots, offsets[places])]
    for place in places[first >= offsets[places + 1]][:1].tolist():
        query = table[place]
        name = decode_id(int(ids[offsets[place]]), MAX_CANDIDATE_NUMBER)
        raise DataError(
            f"{root}: no pool has {name!r} or another positive of query {query.query_id!r} "
            f"({query.column}); add it or leave the query out"
        )
    targets: Ints = found[first]
    return targets
