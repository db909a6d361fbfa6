"""Candidates, rationales and mined negatives as tables: records over memory-mapped files.

Shapes: R records of the table, N records or ids asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tracelib.data.arrow import ArrowTable, gather_slices
from tracelib.data.formats import MODALITIES
from tracelib.data.rationales import SOURCES, RationaleRow
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    decode_id,
    decode_ids,
)
from tracelib.prompts import format_text
from tracelib.types import Candidate

_Record = TypeVar("_Record")
_CHUNK = 4096
_TEXT = MODALITIES.index("text")

Ints = NDArray[np.int64]


class RecordTable(Sequence[_Record]):
    """Records of several files, one after the other, made when they are asked for.

    Args:
        lengths: Records of each file.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._edges = np.cumsum([0, *lengths])

    @abstractmethod
    def _make_records(self, part: int, places: Ints) -> list[_Record]:
        """Make the records at some places `[N]` of one of the files."""

    @property
    def spans(self) -> list[range]:
        """The places of each file's records."""
        edges = self._edges.tolist()
        return [range(*pair) for pair in pairwise(edges)]

    def __len__(self) -> int:
        return int(self._edges[-1])

    @overload
    def __getitem__(self, place: int) -> _Record: ...

    @overload
    def __getitem__(self, place: slice) -> list[_Record]: ...

    def __getitem__(self, place: int | slice) -> _Record | list[_Record]:
        if isinstance(place, slice):
            return self.take(range(len(self))[place])
        return self.take([range(len(self))[place]])[0]

    def __iter__(self) -> Iterator[_Record]:
        for start in range(0, len(self), _CHUNK):
            yield from self.take(range(start, min(start + _CHUNK, len(self))))

    def take(self, places: Sequence[int] | Ints) -> list[_Record]:
        """Return the records at some places `[N]`, in the order asked for.

        Raises:
            IndexError: A place is not in 0 .. R - 1.
        """
        wanted = np.asarray(places, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"places {wanted.min()} .. {wanted.max()} of {len(self)} records")
        parts = np.searchsorted(self._edges, wanted, side="right") - 1
        if len(wanted) and parts[0] == parts[-1] and bool((parts == parts[0]).all()):
            return self._make_records(int(parts[0]), wanted - self._edges[parts[0]])
        records: dict[int, _Record] = {}
        for part in np.unique(parts).tolist():
            spots = np.flatnonzero(parts == part)
            made = self._make_records(part, wanted[spots] - self._edges[part])
            records.update(zip(spots.tolist(), made, strict=True))
        return [records[spot] for spot in range(len(wanted))]


class FileTable(RecordTable[_Record]):
    """Records that are the rows of their files, found by id.

    Args:
        tables: Tables of the files.
    """

    def __init__(self, tables: Sequence[ArrowTable]) -> None:
        super().__init__([len(table) for table in tables])
        self.tables = tuple(tables)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tables,)

    @cached_property
    def ids(self) -> Ints:
        """`[R]` integer ids."""
        return self._read_numbers("id", np.int64)

    def find(self, ids: Ints) -> Ints:
        """Return the place `[N]` of each integer id, -1 where it is absent."""
        places = np.full(len(ids), -1)
        for table, start in zip(self.tables, self._edges, strict=False):
            rows = table.index.find(ids)
            places = np.where((rows >= 0) & (places < 0), rows + start, places)
        return places

    def describe_place(self, place: int) -> str:
        """Return file and line of a row, for messages."""
        part = int(np.searchsorted(self._edges, place, side="right")) - 1
        return f"{self.tables[part].source}:{place - self._edges[part] + 1}"

    def _read_numbers(self, name: str, dtype: type[Any]) -> NDArray[Any]:
        columns = [table.read_numbers(name) for table in self.tables]
        return np.concatenate([np.empty(0, dtype), *columns])


class CandidateTable(FileTable[Candidate]):
    """The candidates of one pool, or of several one after the other, with formatted texts."""

    _format: Callable[[str], str] = staticmethod(format_text)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """`[R]` characters of each text, before it is formatted."""
        return self._read_numbers("length", np.int32)

    @cached_property
    def modalities(self) -> NDArray[np.int8]:
        """`[R]` place of each modality in `MODALITIES`."""
        return self._read_numbers("modality", np.int8)

    @cached_property
    def has_image(self) -> NDArray[np.bool_]:
        """`[R]` whether a candidate has a picture."""
        is_image: NDArray[np.bool_] = self.modalities != _TEXT
        return is_image

    def format_ids(self, places: Ints) -> list[list[str]]:
        """Return the ids `D:N` at places `[N, K]`, row by row."""
        rows = self.ids[np.asarray(places)].tolist()
        return [list(decode_ids(row, MAX_CANDIDATE_NUMBER)) for row in rows]

    def find_first_places(self, pools: Mapping[str, range]) -> Ints:
        """Return for each candidate `[R]` the place of the first of its pool with equal content.

        Text and picture are the content.

        Args:
            pools: Places of each pool's candidates.
        """
        first_places = np.arange(len(self))
        contents = self._read_numbers("content", np.int64)
        for pool in pools.values():
            _, first, inverse = np.unique(
                contents[pool.start : pool.stop], return_index=True, return_inverse=True
            )
            first_places[pool.start : pool.stop] = first[inverse] + pool.start
        again = np.flatnonzero(first_places != np.arange(len(self)))
        pairs = zip(self.take(again), self.take(first_places[again]), strict=True)
        # The column holds a checksum: records that only share it are not the same.
        differs = [(a.text, a.image_path) != (b.text, b.image_path) for a, b in pairs]
        first_places[again[differs]] = again[differs]
        return first_places

    def _make_records(self, part: int, places: Ints) -> list[Candidate]:
        names = ("id", "text", "image_path", "modality")
        columns = self.tables[part].read_rows(places, names)
        return [
            Candidate(
                decode_id(number, MAX_CANDIDATE_NUMBER),
                self._format(text),
                image_path,
                MODALITIES[modality],
            )
            for number, text, image_path, modality in zip(*columns, strict=True)
        ]


class VerbatimCandidateTable(CandidateTable):
    """Candidates with their texts as the files have them."""

    _format = staticmethod(str)


class RationaleTable(FileTable[RationaleRow]):
    """The rationale rows of one file, or of several one after the other."""

    @cached_property
    def task_ids(self) -> NDArray[np.int8]:
        """`[R]` M-BEIR task of each query."""
        return self._read_numbers("task_id", np.int8)

    @cached_property
    def difficulty(self) -> NDArray[np.int8]:
        """`[R]` 1 where a query needs thought, 0 where not, -1 where it does not matter."""
        return self._read_numbers("difficulty", np.int8)

    @cached_property
    def sources(self) -> NDArray[np.int8]:
        """`[R]` place of each thought's writer in `SOURCES`, -1 where there is none."""
        sources = self._read_numbers("source", np.int8)
        has_thought = [
            table.read_column("reasoning").is_valid().to_numpy() for table in self.tables
        ]
        return np.where(np.concatenate([np.empty(0, bool), *has_thought]), sources, np.int8(-1))

    def _make_records(self, part: int, places: Ints) -> list[RationaleRow]:
        names = ("id", "task_id", "difficulty", "reasoning", "answer", "confidence", "source")
        columns = self.tables[part].read_rows(places, (*names, "teacher"))
        return [
            RationaleRow(
                decode_id(number, MAX_QUERY_NUMBER),
                task_id,
                difficulty,
                reasoning,
                answer,
                confidence,
                SOURCES[source],
                teacher,
            )
            for (
                number,
                task_id,
                difficulty,
                reasoning,
                answer,
                confidence,
                source,
                teacher,
            ) in zip(*columns, strict=True)
        ]


class NegativeTable(FileTable[list[int]]):
    """Hard negatives of queries: integer ids of candidates, by query id."""

    def read_lists(self, places: Ints) -> tuple[Ints, Ints]:
        """Return the number of negatives at each place `[N]`, and all their integer ids `[P]`."""
        offsets, values = zip(*(t.read_lists("negative_ids") for t in self.tables), strict=True)
        counts = np.concatenate([np.diff(bounds) for bounds in offsets])
        starts = np.cumsum(counts) - counts
        joined = np.concatenate(values)
        return counts[places], gather_slices(joined, starts[places], (starts + counts)[places])

    def _make_records(self, part: int, places: Ints) -> list[list[int]]:
        (lists,) = self.tables[part].read_rows(places, ["negative_ids"])
        return lists
