"""Difficulty by use: queries that a trained run ranked better after a thought need one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tracelib.construction.assessors.verdict import Assessment
from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.schedule import Schedule, Work
from tracelib.construction.phase_driver import OnProgress, Outcome, run_locally
from tracelib.construction.queries import SourceQueries, SourceQuery
from tracelib.data.jsonl import DataError, read_rows
from tracelib.data.rationales import parse_rationale
from tracelib.data.records import MAX_QUERY_NUMBER, encode_id

_UNLABELLED = -2
_REASONS = {
    1: "a thought helped to find it",
    0: "a thought did not help to find it",
    -1: "it was found as well without a thought",
}
"""What a label says; what a thought changes nothing about is answered at once."""


class UtilityAssessor:
    """Takes the labels that `route-labels` wrote.

    A query without a label has no verdict: its row is quarantined, until the file gives one.

    Args:
        path: File of `route-labels`, .jsonl.

    Raises:
        DataError: The file is missing, a row breaks the format, or a query has two.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        numbers: list[int] = []
        labels: list[int] = []
        self._splits: set[str] = set()
        for row in read_rows(path):
            parsed = parse_rationale(row)
            numbers.append(encode_id(parsed.query_id, MAX_QUERY_NUMBER))
            labels.append(parsed.difficulty)
            self._splits.add(str(row.require("split")))
        order = np.argsort(numbers, kind="stable")
        self._numbers = np.array(numbers, np.int64)[order]
        self._labels = np.array(labels, np.int8)[order]
        if (again := np.flatnonzero(self._numbers[1:] == self._numbers[:-1])).size:
            dataset, number = divmod(int(self._numbers[again[0]]), MAX_QUERY_NUMBER)
            raise DataError(f"{path}: qid '{dataset}:{number}' has two rows; keep one")

    def hash_input(self, query: SourceQuery) -> str:
        """Return 16 hexadecimal digits that change with the query's label."""
        return compute_input_hash("utility", self._find_label(query.query_id))

    def find_difficulty(self, query: SourceQuery) -> int | None:
        """Return a query's difficulty, or None where the file has no label of it."""
        label = self._find_label(query.query_id)
        return None if label == _UNLABELLED else int(label == 1)

    async def assess(
        self, schedule: Schedule, queries: SourceQueries, name: str, on_progress: OnProgress
    ) -> None:
        """Assess the queries that are due.

        Args:
            schedule: What is due.
            queries: The queries.
            name: Name that the rows carry.
            on_progress: Told after each.

        Raises:
            DataError: The file is of another split.
        """
        if self._splits != {queries.settings.split}:
            raise DataError(
                f"{self._path} has labels of {sorted(self._splits)}, but data.split is "
                f"{queries.settings.split!r}: ids are unique within a split only"
            )

        def judge(work: Work) -> Outcome:
            label = self._find_label(work.query_id)
            if label == _UNLABELLED:
                return Outcome.failed(f"{self._path} has no label of this query", is_final=True)
            verdict = Assessment(1 if label == 1 else 0, _REASONS[label])
            return Outcome.done(verdict.format_result(name))

        await run_locally(schedule, judge, on_progress)

    def _find_label(self, query_id: str) -> int:
        number = encode_id(query_id, MAX_QUERY_NUMBER)
        place = int(self._numbers.searchsorted(number))
        if place == len(self._numbers) or self._numbers[place] != number:
            return _UNLABELLED
        return int(self._labels[place])
