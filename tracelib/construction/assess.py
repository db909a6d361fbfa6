"""The phase `assess`: does a query need thought? Every assessor says, one of them decides."""

from __future__ import annotations

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
        assessors: Assessors by name; the place of each is its sample in the journal.
        use: Name of the one that decides; the others are compared with it in the report.

    Raises:
        ValueError: There is no assessor, or none of that name.
    """

    assessors: dict[str, Assessor]
    use: str

    def __post_init__(self) -> None:
        if self.use not in self.assessors or len(self.assessors) > MAX_SAMPLE:
            raise ValueError(
                f"assess.use is {self.use!r}; it must be one of assess.assessors, which are "
                f"{list(self.assessors)}"
            )

    @property
    def names(self) -> list[str]:
        """Names of the assessors, in the order of their samples."""
        return list(self.assessors)

    @property
    def use_sample(self) -> int:
        """Sample of the assessor that decides."""
        return self.names.index(self.use)

    def hash_input(self, name: str, query: SourceQuery) -> str:
        """Return the input hash of an assessor's row."""
        return compute_input_hash(name, self.assessors[name].hash_input(query))


def list_assess_inputs(
    settings: AssessSettings, name: str, queries: SourceQueries
) -> Iterator[PhaseInput]:
    """Yield the inputs of an assessor: every query."""
    sample = settings.names.index(name)
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


def read_assessed(settings: AssessSettings, query: SourceQuery, work: Journal) -> JournalRow | None:
    """Return the row that decides a query's difficulty.

    None where there is none yet, or only one of other settings or a failed one.
    """
    row = work.open_phase("assess").read_row(query.query_id, settings.use_sample)
    if row is None or row.status != "done":
        return None
    return row if row.input_hash == settings.hash_input(settings.use, query) else None
