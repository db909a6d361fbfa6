"""The phase `assess`: does a query need thought? Every assessor says, one of them decides."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tracelib.construction.assessors.rule_assessor import RuleAssessor as RuleAssessor
from tracelib.construction.assessors.teacher_assessor import TeacherAssessor as TeacherAssessor
from tracelib.construction.assessors.utility_assessor import UtilityAssessor as UtilityAssessor
from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.journal_row import JournalRow
from tracelib.construction.journal.row_key import MAX_SAMPLE
from tracelib.construction.journal.schedule import PhaseInput, Schedule
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.phase_driver import OnProgress
from tracelib.construction.queries import SourceQueries, SourceQuery


class Assessor(Protocol):
    """Says of queries whether they need thought."""

    def hash_input(self, query: SourceQuery) -> str:
        """Return 16 hexadecimal digits that stand for what the verdict depends on."""

    def find_difficulty(self, query: SourceQuery) -> int | None:
        """Return a query's difficulty, or None where a teacher has to be asked for it."""

    async def assess(
        self, schedule: Schedule, queries: SourceQueries, name: str, on_progress: OnProgress
    ) -> None:
        """Assess the queries that are due.

        Args:
            schedule: What is due.
            queries: The queries.
            name: Name that the rows carry.
            on_progress: Told after each.
        """


@dataclass(frozen=True)
class AssessSettings:
    """Who says whether a query needs thought.

    Args:
        assessors: Assessors by name. Their rows go by the name, so that others can come and go; an
            assessor with another name asks anew.
        use: Name of the one that decides; the others are compared with it in the report.

    Raises:
        ValueError: There is no assessor, none of that name, or two names have one sample number.
    """

    assessors: dict[str, Assessor]
    use: str

    def __post_init__(self) -> None:
        if self.use not in self.assessors:
            raise ValueError(
                f"assess.use is {self.use!r}; it must be one of assess.assessors, which are "
                f"{list(self.assessors)}"
            )
        named: dict[int, str] = {}
        for name in self.assessors:
            other = named.setdefault(number_assessor(name), name)
            if other != name:
                raise ValueError(
                    f"assess.assessors {other!r} and {name!r} have the same sample number "
                    f"{number_assessor(name)} in the journal; rename one"
                )

    def hash_input(self, name: str, query: SourceQuery) -> str:
        """Return the input hash of an assessor's row."""
        return compute_input_hash(name, self.assessors[name].hash_input(query))


def number_assessor(name: str) -> int:
    """Return the sample of phase `assess` that an assessor's rows have, `0 .. MAX_SAMPLE`.

    >>> number_assessor("paper")
    22
    """
    return zlib.crc32(name.encode()) & MAX_SAMPLE


def list_assess_inputs(
    settings: AssessSettings, name: str, queries: SourceQueries
) -> Iterator[PhaseInput]:
    """Yield the inputs of an assessor: every query."""
    sample = number_assessor(name)
    for query in queries:
        yield PhaseInput(query.query_id, sample, settings.hash_input(name, query))


async def run_assess(
    settings: AssessSettings,
    queries: SourceQueries,
    work: Journal,
    watch: Callable[[str], OnProgress],
    max_attempts: int = 3,
    retry_quarantined: bool = False,
) -> None:
    """Have every assessor judge the queries that it has no verdict of.

    Args:
        settings: The assessors.
        queries: The queries.
        work: The work folder.
        watch: Gives what is told of an assessor's progress, by its name.
        max_attempts: Attempts at a query before it is quarantined.
        retry_quarantined: Whether quarantined rows are tried again.

    Raises:
        TeacherDownError: A teacher answers nothing any more.
        JournalError: A row cannot be written.
        ValueError: An assessor cannot judge one of the data sets.
    """
    for name, assessor in settings.assessors.items():
        on_progress = watch(name)  # before the inputs are counted, which takes its time
        schedule = Schedule(
            work.open_phase("assess"),
            lambda name=name: list_assess_inputs(settings, name, queries),  # type: ignore[misc]
            max_attempts,
            retry_quarantined,
        )
        await assessor.assess(schedule, queries, name, on_progress)


def read_assessed(
    settings: AssessSettings, name: str, query: SourceQuery, work: Journal
) -> JournalRow | None:
    """Return an assessor's row of a query, also a failed one, or None.

    None where there is none yet, or only one of other settings.
    """
    return work.open_phase("assess").read_present(
        query.query_id, number_assessor(name), settings.hash_input(name, query)
    )


def find_difficulty(settings: AssessSettings, query: SourceQuery, work: Journal) -> int | None:
    """Return what the assessor in use says of a query, or None as long as it says nothing."""
    row = read_assessed(settings, settings.use, query, work)
    return int(row.result["difficulty"]) if row is not None and row.status == "done" else None
