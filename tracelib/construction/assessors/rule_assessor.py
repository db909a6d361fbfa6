"""Difficulty by rule: the data set of a query decides, or a pattern of its text."""

from __future__ import annotations

import re

from tracelib.construction.assessors.verdict import Assessment
from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.schedule import Schedule, Work
from tracelib.construction.phase_driver import OnProgress, Outcome, run_locally
from tracelib.construction.queries import SourceQueries, SourceQuery

_REASONING_DATASETS = ("cirr", "fashioniq", "infoseek", "oven")
_DIRECT_DATASETS = ("visualnews", "mscoco", "fashion200k", "webqa", "edis", "nights")


class RuleAssessor:
    """Splits queries by their data sets, as the paper's data set is split (TRACE, supplement 9).

    Args:
        reasoning_datasets: Data sets whose queries need thought.
        direct_datasets: Data sets whose queries need none.
        hard_query_pattern: Regular expression for the queries of other data sets: those whose text
            has a match need thought. null where there are none.

    Raises:
        ValueError: A data set is on both lists, or the pattern is no regular expression.
    """

    def __init__(
        self,
        reasoning_datasets: tuple[str, ...] = _REASONING_DATASETS,
        direct_datasets: tuple[str, ...] = _DIRECT_DATASETS,
        hard_query_pattern: str | None = None,
    ) -> None:
        if both := sorted(set(reasoning_datasets) & set(direct_datasets)):
            raise ValueError(f"{both[0]!r} is in reasoning_datasets and in direct_datasets")
        self._reasoning, self._direct = set(reasoning_datasets), set(direct_datasets)
        try:
            self._pattern = None if hard_query_pattern is None else re.compile(hard_query_pattern)
        except re.error as error:
            raise ValueError(
                f"hard_query_pattern {hard_query_pattern!r} is no regular expression: {error}"
            ) from error

    def judge(self, query: SourceQuery) -> Assessment:
        """Return the verdict on a query.

        Raises:
            ValueError: Its data set is on no list, and there is no pattern.
        """
        if query.dataset in self._reasoning:
            return Assessment(1, f"queries of {query.dataset} need thought")
        if query.dataset in self._direct:
            return Assessment(0, f"queries of {query.dataset} are matched at once")
        if self._pattern is None:
            raise ValueError(
                f"data set {query.dataset!r} is in neither reasoning_datasets "
                f"{sorted(self._reasoning)} nor direct_datasets {sorted(self._direct)}; add it, or "
                "set hard_query_pattern (assess.assessors)"
            )
        if match := self._pattern.search(query.text):
            return Assessment(1, f"the text has {match[0]!r}")
        return Assessment(0, "the text has nothing that needs thought")

    def hash_input(self, query: SourceQuery) -> str:
        """Return 16 hexadecimal digits that change with the verdict."""
        return compute_input_hash("rule", vars(self.judge(query)))

    def find_difficulty(self, query: SourceQuery) -> int | None:
        """Return a query's difficulty; raises as `assess` does."""
        return self.judge(query).difficulty

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
            ValueError: A data set is on no list, and there is no pattern.
        """

        def judge_work(work: Work) -> Outcome:
            return Outcome.done(self.judge(queries.find(work.query_id)).format_result(name))

        await run_locally(schedule, judge_work, on_progress)
