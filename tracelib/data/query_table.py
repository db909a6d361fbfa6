"""Queries as a table: the query file joined with instructions, positives and rationales.

Shapes: Q queries of the table, R rows of a file, N queries asked for, P ids of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelib.data.instructions import InstructionTable, VerbatimTexts
from tracelib.data.query_file import QueryFile
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    TASK_MODALITIES,
    decode_id,
    decode_ids,
)
from tracelib.data.tables import Ints, NegativeTable, RecordTable
from tracelib.types import Query


class QueryTable(RecordTable[Query]):
    """Queries of one file or of several, with instructions, positives and rationales.

    Args:
        split: `train`, `val` or `test`.
        files: The query files.
        instructions: The prompts and the policy that chooses among them; under `all` each query
        instructions: The prompts and the policy that chooses among them; under `all` each query
            comes once with every prompt of its row. `VerbatimTexts` where texts have theirs.

    Raises:
        DataError: A query has no row in the table of instructions.
    """

    def __init__(
        self,
        split: str,
        files: Sequence[QueryFile],
        instructions: InstructionTable | VerbatimTexts,
    ) -> None:
        self.split, self.files, self.instructions = split, tuple(files), instructions
        selected = [_select_rows(file, instructions) for file in files]
        self._rows = [rows for rows, _ in selected]
        self._prompt_numbers = [numbers for _, numbers in selected]
        super().__init__([len(rows) for rows in self._rows])

    def __reduce__(self) -> tuple[Any, ...]:
        return QueryTable, (self.split, self.files, self.instructions)

    @cached_property
    def ids(self) -> Ints:
        """`[Q]` integer ids."""
        return self._join([file.ids for file in self.files])

    @cached_property
    def task_ids(self) -> NDArray[np.int8]:
        """`[Q]` M-BEIR task of each query."""
        return self._join([file.task_ids for file in self.files])

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """`[Q]` characters of each text, before it is formatted."""
        return self._join([file.table.read_numbers("length") for file in self.files])

    @cached_property
    def has_image(self) -> NDArray[np.bool_]:
        """`[Q]` whether a query has a picture."""
        paths = [file.table.read_column("image_path") for file in self.files]
        return self._join([column.is_valid().to_numpy() for column in paths])

    @cached_property
    def prompt_numbers(self) -> NDArray[np.int8]:
        """`[Q]` which prompt a query has, from 1, under the policy `all`; else 0."""
        return np.concatenate(self._prompt_numbers)

    @cached_property
    def query_ids(self) -> list[str]:
        """The id `D:N` of each query."""
        return [decode_id(number, MAX_QUERY_NUMBER) for number in self.ids.tolist()]

    @cached_property
    def columns(self) -> list[str]:
        """Column of each query."""
        return [
            file.name_column(number, task_id)
            for file, rows in zip(self.files, self._rows, strict=True)
            for number, task_id in zip(
                file.ids[rows].tolist(), file.task_ids[rows].tolist(), strict=True
            )
        ]

    @cached_property
    def difficulty(self) -> NDArray[np.int8]:
        """`[Q]` 1 where a query needs thought, 0 where not, -1 elsewhere."""
        return self._join([file.difficulty for file in self.files])

    @cached_property
    def rationale_sources(self) -> NDArray[np.int8]:
        """`[Q]` place of each thought's writer in `SOURCES`, -1 without a thought."""
        return self._look_up([file.rationales.sources for file in self.files])

    @cached_property
    def is_annotated(self) -> NDArray[np.bool_]:
        """`[Q]` whether a query has a rationale row, with a thought or without."""
        return self._join([file.rationale_places >= 0 for file in self.files])

    @cached_property
    def positives(self) -> tuple[Ints, Ints]:
        """Offsets `[Q + 1]` into the integer ids `[P]` of all queries' positives, and these."""
        return _join_lists(
            [f.read_positives(rows) for f, rows in zip(self.files, self._rows, strict=True)]
        )

    @cached_property
    def listed_negatives(self) -> tuple[Ints, Ints]:
        """Offsets `[Q + 1]` into the integer ids `[P]` of all hard negatives, and these."""
        return _join_lists(
            [f.read_negatives(rows) for f, rows in zip(self.files, self._rows, strict=True)]
        )

    def select(self, is_kept: NDArray[np.bool_]) -> QueryTable:
        """Return the table of the queries that `is_kept` `[Q]` marks, in the same order.

        A query that comes with each of its prompts is kept with all or none of them.
        """
        rows = [
            np.unique(rows[is_kept[span.start : span.stop]])
            for rows, span in zip(self._rows, self.spans, strict=True)
        ]
        files = [replace(file, kept_rows=kept) for file, kept in zip(self.files, rows, strict=True)]
        return QueryTable(self.split, files, self.instructions)

    def replace_negatives(self, mined: NegativeTable) -> QueryTable:
        """Return the same queries with other hard negatives; `mined` has a row of each query."""
        files = [replace(file, mined=mined) for file in self.files]
        return QueryTable(self.split, files, self.instructions)

    def _join(self, columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the values of all queries from a column `[R]` of each file."""
        return np.concatenate([c[rows] for c, rows in zip(columns, self._rows, strict=True)])

    def _look_up(self, columns: Sequence[NDArray[np.int8]]) -> NDArray[np.int8]:
        """Return the values of all queries from a column of each file's rationales, -1 without."""
        values = []
        for file, column, rows in zip(self.files, columns, self._rows, strict=True):
            places = file.rationale_places[rows]
            values.append(np.append(column, np.int8(-1))[places])
        return np.concatenate(values)

    def _make_records(self, part: int, places: Ints) -> list[Query]:
        file, rows = self.files[part], self._rows[part][places]
        names = ["id", "text", "image_path", "task_id", "negative_ids"]
        names += ["positive_ids"] if file.qrels is None else []
        numbers, texts, image_paths, task_ids, negatives, *rest = file.table.read_rows(rows, names)
        if file.mined is not None:
            negatives = file.mined.take(file.mined.find(np.array(numbers)))
        if file.qrels is None:
            positives = [decode_ids(ids, MAX_CANDIDATE_NUMBER) for ids in rest[0]]
        else:
            positives = file.qrels.read_positives(np.array(numbers))
        columns = zip(
            numbers,
            texts,
            image_paths,
            task_ids,
            positives,
            negatives,
            file.read_rationales(rows),
            file.difficulty[rows].tolist(),
            self._prompt_numbers[part][places].tolist(),
            strict=True,
        )
        prompts: dict[tuple[int, int], tuple[str, list[str]]] = {}
        queries = []
        for (
            number,
            text,
            path,
            task_id,
            positive_ids,
            listed,
            found,
            difficulty,
            prompt_number,
        ) in columns:
            query_id, key = (
                decode_id(number, MAX_QUERY_NUMBER),
                (number // MAX_QUERY_NUMBER, task_id),
            )
            if key not in prompts:
                row = self.instructions.find_prompts(query_id, TASK_MODALITIES[task_id])
                prompts[key] = file.name_column(number, task_id), row
            column, row = prompts[key]
            instruction = self.instructions.choose(row, self.split, query_id, prompt_number)
            negative_ids = decode_ids(listed, MAX_CANDIDATE_NUMBER)
            queries.append(
                Query(
                    query_id,
                    column,
                    task_id,
                    self.instructions.format_text(instruction, text),
                    path,
                    instruction,
                    positive_ids,
                    found.rationale if found else None,
                    difficulty if difficulty >= 0 else None,
                    tuple([name for name in negative_ids if name not in positive_ids]),
                    prompt_number,
                )
            )
        return queries


def _select_rows(
    file: QueryFile, instructions: InstructionTable | VerbatimTexts
) -> tuple[Ints, NDArray[np.int8]]:
    """Return the row and the prompt number of each query that a file gives."""
    rows = np.arange(len(file.table)) if file.kept_rows is None else file.kept_rows
    if file.task_id is not None:
        rows = rows[file.task_ids == file.task_id]
    pairs = np.stack([file.ids[rows] // MAX_QUERY_NUMBER, file.task_ids[rows]])
    _, first, inverse = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
    counts = np.array(
        [
            len(
                instructions.find_prompts(
                    decode_id(int(file.ids[row]), MAX_QUERY_NUMBER),
                    TASK_MODALITIES[int(file.task_ids[row])],
                )
            )
            for row in rows[first].tolist()
        ],
        dtype=np.int64,
    )[inverse]
    if instructions.policy != "all":
        return rows, np.zeros(len(rows), np.int8)
    starts = np.cumsum(counts) - counts
    numbers = np.arange(counts.sum()) - np.repeat(starts, counts) + 1
    return np.repeat(rows, counts), numbers.astype(np.int8)


def _join_lists(lists: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Return offsets and values of all files from the counts and values of each."""
    counts = np.concatenate([np.zeros(1, np.int64), *(counts for counts, _ in lists)])
    return np.cumsum(counts), np.concatenate([values for _, values in lists])
