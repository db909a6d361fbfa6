"""A converted source file: memory-mapped Arrow columns with an index of its ids.

Shapes: R rows of the table, N rows or ids asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from tracelib.data.jsonl import DataError

TABLE_FILE = "table.arrow"
_IDS_FILE, _ROWS_FILE = "ids.npy", "rows.npy"


def write_index(folder: Path, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Write the index of a table's ids `[R]`; return the sorted ids and their rows."""
    rows = np.argsort(ids, kind="stable").astype(np.int32)
    ids = ids[rows]
    np.save(folder / _IDS_FILE, ids)
    np.save(folder / _ROWS_FILE, rows)
    return ids, rows


class IdIndex:
    """Finds rows by id: sorted ids and their rows, 12 bytes a row, in files mapped by all readers.

    Args:
        folder: Folder that `write_index` wrote to.
    """

    def __init__(self, folder: Path) -> None:
        self._ids, self._rows = (
            np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False))
            for name in (_IDS_FILE, _ROWS_FILE)
        )

    @property
    def sorted_ids(self) -> NDArray[np.int64]:
        """`[R]` ids in rising order."""
        return self._ids

    @property
    def num_bytes(self) -> int:
        """Bytes of the index."""
        return self._ids.nbytes + self._rows.nbytes

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row `[N]` of each id, the first where it repeats, -1 where it is absent."""
        spots = np.searchsorted(self._ids, ids)
        spots[spots == len(self._ids)] = 0
        return np.where(self._ids[spots] == ids, self._rows[spots].astype(np.int64), -1)

    def find_spans(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return start and stop `[N]` of each id's rows, of a table that is sorted by id."""
        return np.searchsorted(self._ids, ids), np.searchsorted(self._ids, ids, side="right")


class ArrowTable:
    """Rows of one source file; nothing is in memory but what is asked for.

    Pickled as its path, so a worker opens the same files and shares their pages.

    Args:
        source: The file that was converted.
        folder: Folder of the table and its index.
        num_rows: Rows that the conversion wrote.

    Raises:
        DataError: The table is damaged.
    """

    def __init__(self, source: Path, folder: Path, num_rows: int) -> None:
        self.source, self.folder = source, folder
        try:
            self._columns = Dataset.from_file(str(folder / TABLE_FILE)).data
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{folder}: the table of {source} cannot be read ({error}); remove {folder.parent}"
            ) from error
        if len(self._columns) != num_rows:
            raise DataError(
                f"{folder}: the table holds {len(self._columns)} rows, not {num_rows} as converted "
                f"from {source}; remove {folder.parent}"
            )
        self._ends = np.cumsum([len(chunk) for chunk in self._columns.column("id").chunks])

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowTable, (self.source, self.folder, len(self))

    def __len__(self) -> int:
        return len(self._columns)

    @cached_property
    def index(self) -> IdIndex:
        """The index of the column `id`."""
        return IdIndex(self.folder)

    def read_column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column, mapped."""
        return self._columns.column(name)

    def read_numbers(self, name: str) -> NDArray[Any]:
        """Return a whole column of numbers `[R]`, in memory."""
        numbers: NDArray[Any] = self.read_column(name).to_numpy()
        return numbers

    def read_lists(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return offsets `[R + 1]` into the joined numbers of a column of lists, and these."""
        column = self.read_column(name)
        offsets = np.cumsum(np.append([0], pc.list_value_length(column).to_numpy()))
        return offsets, pc.list_flatten(column).to_numpy()

    def read_rows(self, rows: NDArray[np.int64], names: Sequence[str]) -> list[list[Any]]:
        """Return the values of some rows `[N]`, a list for each of the columns `names`."""
        columns = [self.read_column(name) for name in names]
        if not len(rows):
            return [[] for _ in names]
        if len(rows) == 1 + rows[-1] - rows[0] and bool((np.diff(rows) == 1).all()):
            return [column.slice(int(rows[0]), len(rows)).to_pylist() for column in columns]
        # Cell by cell, as `take` on a column of many chunks would join them all in memory first.
        numbers = np.searchsorted(self._ends, rows, side="right")
        starts = np.concatenate([[0], self._ends])[numbers]
        cells = list(zip(numbers.tolist(), (rows - starts).tolist(), strict=True))
        chunks = [column.chunks for column in columns]
        return [[parts[i][k].as_py() for i, k in cells] for parts in chunks]


def gather_slices(
    values: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return `values[start:stop]` of all pairs, joined.

    >>> gather_slices(np.arange(9), np.array([6, 0]), np.array([8, 3]))
    array([6, 7, 0, 1, 2])
    """
    counts = stops - starts
    shifts = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    gathered: NDArray[np.int64] = values[np.arange(len(shifts)) + shifts]
    return gathered
