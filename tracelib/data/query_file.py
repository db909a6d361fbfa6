"""One query file, and the tables that are joined to it by query id.

Shapes: R rows of the file, N rows asked for, P ids of all of these together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelib.data.arrow import ArrowTable, gather_slices
from tracelib.data.jsonl import DataError
from tracelib.data.layout import DATASET_NAMES
from tracelib.data.qrels_table import QrelsTable
from tracelib.data.rationales import RationaleRow
from tracelib.data.records import MAX_QUERY_NUMBER, decode_id
from tracelib.data.tables import Ints, NegativeTable, RationaleTable


@dataclass(frozen=True, eq=False)
class QueryFile:
    """One query file and what is joined to it.

    Args:
        table: Table of the file.
        dataset: Data set of its queries; None takes that of each query's id.
        qrels: Their positives; None takes those of the rows.
        rationales: Rationale rows, by query id.
        task_id: Keep the queries of this task only; None keeps all.
        kept_rows: Keep these rows only, in rising order; None keeps all.
        mined: Hard negatives, by query id; None takes those of the rows.
        labels: Rationale rows whose difficulty counts where the others have none.
    """

    table: ArrowTable
    dataset: str | None
    qrels: QrelsTable | None
    rationales: RationaleTable
    task_id: int | None = None
    kept_rows: Ints | None = None
    mined: NegativeTable | None = None
    labels: RationaleTable | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        joined = (self.table, self.dataset, self.qrels, self.rationales)
        return QueryFile, (*joined, self.task_id, self.kept_rows, self.mined, self.labels)

    @cached_property
    def ids(self) -> Ints:
        """`[R]` integer ids."""
        return self.table.read_numbers("id")

    @cached_property
    def task_ids(self) -> NDArray[np.int8]:
        """`[R]` M-BEIR task of each query."""
        return self.table.read_numbers("task_id")

    @cached_property
    def rationale_places(self) -> Ints:
        """`[R]` place of each query's rationale row, -1 without one."""
        return self.rationales.find(self.ids)

    @cached_property
    def difficulty(self) -> NDArray[np.int8]:
        """`[R]` 1 where a query needs thought, 0 where not, -1 elsewhere."""
        found = _take_difficulty(self.rationales, self.rationale_places)
        if self.labels is None:
            return found
        return np.where(
            found >= 0, found, _take_difficulty(self.labels, self.labels.find(self.ids))
        )

    def name_query(self, row: int) -> str:
        """Return the id `D:N` of a row's query."""
        return decode_id(int(self.ids[row]), MAX_QUERY_NUMBER)

    def name_column(self, number: int, task_id: int) -> str:
        """Return the column of a query, by its integer id and task."""
        dataset = self.dataset or DATASET_NAMES[number // MAX_QUERY_NUMBER]
        return f"{dataset}_task{task_id}"

    def read_positives(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the number of positives of each row `[N]`, and all their integer ids `[P]`."""
        if self.qrels is None:
            return self.read_ids("positive_ids", rows)
        starts, stops = self.qrels.find_spans(self.ids[rows])
        return stops - starts, gather_slices(self.qrels.candidate_ids, starts, stops)

    def read_negatives(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the number of hard negatives of each row `[N]`, and all their ids `[P]`."""
        if self.mined is None:
            return self.read_ids("negative_ids", rows)
        return self.mined.read_lists(self.mined.find(self.ids[rows]))

    def read_ids(self, name: str, rows: Ints) -> tuple[Ints, Ints]:
        """Return the length of a column of lists at each row `[N]`, and all their ids `[P]`."""
        offsets, values = self.table.read_lists(name)
        starts, stops = offsets[rows], offsets[rows + 1]
        return stops - starts, gather_slices(values, starts, stops)

    def read_rationales(self, rows: Ints) -> list[RationaleRow | None]:
        """Return the rationale row of each query `[N]`, None without one."""
        places = self.rationale_places[rows]
        spots = np.flatnonzero(places >= 0)
        found: list[RationaleRow | None] = [None] * len(rows)
        for spot, row in zip(spots.tolist(), self.rationales.take(places[spots]), strict=True):
            found[spot] = row
        return found


def check_joins(file: QueryFile) -> None:
    """Check that queries, qrels and rationale rows of a file are of the same queries.

    Raises:
        DataError: A query has no positive or no data set, or a row of the other files has no query
            or another task.
    """
    if file.qrels is not None:
        _check_qrels(file, file.qrels)
    if file.dataset is None:
        limit = len(DATASET_NAMES) * MAX_QUERY_NUMBER
        for row in np.flatnonzero(file.ids >= limit)[:1].tolist():
            raise DataError(
                f"{file.table.source}:{row + 1}: qid {file.name_query(row)!r} is of no data set of "
                f"M-BEIR, whose ids are 0 .. {len(DATASET_NAMES) - 1}"
            )
    places = file.rationale_places
    rows = np.flatnonzero(places >= 0)
    differs = file.rationales.task_ids[places[rows]] != file.task_ids[rows]
    for row in rows[differs][:1].tolist():
        place = int(places[row])
        raise DataError(
            f"{file.table.source}:{row + 1}: task_id {file.task_ids[row]}, but "
            f"{file.rationales.task_ids[place]} in the rationale of {file.name_query(row)!r} "
            f"({file.rationales.describe_place(place)})"
        )


def check_rationales(files: Sequence[QueryFile]) -> None:
    """Check that every rationale row is of a query of some files that share their rationales.

    Raises:
        DataError: A rationale row has no query.
    """
    rationales = files[0].rationales
    is_known = np.zeros(len(rationales), bool)
    for file in files:
        is_known |= file.table.index.find(rationales.ids) >= 0
    for place in np.flatnonzero(~is_known)[:1].tolist():
        name = decode_id(int(rationales.ids[place]), MAX_QUERY_NUMBER)
        sources = ", ".join(str(file.table.source) for file in files)
        raise DataError(
            f"{rationales.describe_place(place)}: qid {name!r} is no query of {sources}; drop it"
        )


def _take_difficulty(rows: RationaleTable, places: Ints) -> NDArray[np.int8]:
    """Return the difficulty at each place, -1 where that is -1."""
    return np.append(rows.difficulty, np.int8(-1))[places]


def _check_qrels(file: QueryFile, qrels: QrelsTable) -> None:
    starts, stops = qrels.find_spans(file.ids)
    for row in np.flatnonzero(starts == stops)[:1].tolist():
        column = file.name_column(int(file.ids[row]), int(file.task_ids[row]))
        raise DataError(
            f"{file.table.source}:{row + 1}: qid {file.name_query(row)!r} has no positive in the "
            f"qrels of {column} ({qrels.table.source})"
        )
    ids = qrels.table.index.sorted_ids
    for row in np.flatnonzero(file.table.index.find(ids) < 0)[:1].tolist():
        line = qrels.table.read_numbers("line")[row]
        name = decode_id(int(ids[row]), MAX_QUERY_NUMBER)
        raise DataError(
            f"{qrels.table.source}:{line}: qid {name!r} is no query of {file.table.source}; "
            "drop the line"
        )
