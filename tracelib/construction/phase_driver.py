"""Drives a phase: work from its schedule to a teacher, and what comes of it into the journal.

A reply goes to the journal as soon as it is read. A failure, of whatever kind, is held back until
the next reply proves that teacher and settings are in order. If none comes, the work is given back
with no attempt counted, and the run stops: nothing is lost, and no query is blamed for what hits
them all, such as a dead server or a wrong folder of pictures.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable

from tracelib.construction.journal.progress import Progress
from tracelib.construction.journal.schedule import Schedule, Work
from tracelib.construction.phase_outcome import Counts as Counts
from tracelib.construction.phase_outcome import Outcome as Outcome
from tracelib.construction.phase_outcome import record_outcome
from tracelib.construction.teachers.dispatch import TeacherDownError, run_requests
from tracelib.construction.teachers.teacher import Reply, Request, Teacher, TeacherError

MAX_CONSECUTIVE_FAILURES = 64
"""Failures without a reply between them after which a teacher counts as down."""
_MIN_CONSECUTIVE_FAILURES = 16  # the same where no work is left to ask
_UNREACHED = ("connection", "rate_limit")  # what even a few requests tell of a teacher alone
_YIELD_SECONDS = 0.05  # how long work without a teacher keeps signals waiting


OnProgress = Callable[[Progress, Counts], None]
"""Is told after each result how far the phase is."""


async def run_phase(
    schedule: Schedule,
    teacher: Teacher,
    build_request: Callable[[Work], Request],
    read_reply: Callable[[Work, Reply], Outcome],
    concurrency: int,
    on_progress: OnProgress,
) -> None:
    """Ask a teacher about all that a phase has still to do.

    A teacher is entered if there is something to ask, and left again. When the run is cancelled or
    raises, what is in flight stays as it was before.

    Args:
        schedule: What is to be done.
        teacher: Whom to ask; not entered.
        build_request: Makes the request of a work.
        read_reply: Reads a reply; a `ValueError` of it is a failed attempt, kept with the reply.
        concurrency: Requests in flight, 1 and above.
        on_progress: Told after each result.

    Raises:
        TeacherDownError: The teacher answers nothing any more, does not let us in, or has taken the
            requests and has no replies yet.
        JournalError: A row cannot be written.
        ValueError: `concurrency` is out of its range.
    """
    if not schedule.progress.num_due:
        return
    drive = _Drive(schedule, teacher, build_request, read_reply, on_progress)
    try:
        async with teacher:
            await run_requests(
                drive.iterate_requests(), teacher, drive.take_result, concurrency, sys.maxsize
            )
        drive.raise_if_waiting()
    finally:
        drive.release_all()


async def run_locally(
    schedule: Schedule, judge: Callable[[Work], Outcome], on_progress: OnProgress
) -> None:
    """Do all that a phase has still to do where no teacher is needed; raises as `judge` does."""
    counts, rested = Counts(), time.monotonic()
    while (work := schedule.take()) is not None:
        record_outcome(schedule, work, judge(work))
        on_progress(schedule.progress, counts)
        if time.monotonic() - rested > _YIELD_SECONDS:
            await asyncio.sleep(0)
            rested = time.monotonic()


class _Drive:
    """One run of a phase: what is in flight, and the failures that nobody is blamed for yet."""

    def __init__(
        self,
        schedule: Schedule,
        teacher: Teacher,
        build_request: Callable[[Work], Request],
        read_reply: Callable[[Work, Reply], Outcome],
        on_progress: OnProgress,
    ) -> None:
        self._schedule, self._teacher = schedule, teacher
        self._build_request, self._read_reply = build_request, read_reply
        self._on_progress = on_progress
        self._counts = Counts()
        self._in_flight: dict[str, Work] = {}
        self._suspects: list[tuple[Work, TeacherError]] = []
        self._changed = asyncio.Event()
        self._num_first_pass = schedule.progress.num_due
        self._num_taken = self._num_waiting = 0
        self._waiting: TeacherError | None = None

    async def iterate_requests(self) -> AsyncIterator[Request]:
        """Yield requests while there is work, waiting for what is in flight where it may fail."""
        while True:
            self._changed.clear()
            if self._waiting and self._num_taken >= self._num_first_pass:
                return  # asking again would find no more replies
            work = self._schedule.take()
            if work is not None:
                self._num_taken += 1
                request = self._build_request(work)
                self._in_flight[request.key] = work
                yield request
            elif self._in_flight:
                await self._changed.wait()
            elif self._suspects:
                self._settle_last_suspects()
            else:
                return

    def take_result(self, request: Request, outcome: Reply | TeacherError) -> None:
        """Write down what came of a request, or hold it back."""
        work = self._in_flight.pop(request.key)
        self._changed.set()
        if isinstance(outcome, Reply):
            self._blame_suspects()
            self._counts.num_replies += 1
            self._counts.prompt_tokens += outcome.prompt_tokens
            self._counts.completion_tokens += outcome.completion_tokens
            record_outcome(self._schedule, work, self._read(work, outcome))
        elif outcome.kind == "waiting":
            self._schedule.release(work)
            self._waiting, self._num_waiting = outcome, self._num_waiting + 1
        else:
            self._counts.num_failures += 1
            self._take_failure(work, outcome)
        self._on_progress(self._schedule.progress, self._counts)

    def raise_if_waiting(self) -> None:
        """Raise if requests were put where their replies are to come from."""
        if self._waiting:
            raise TeacherDownError(
                f"teacher {self._teacher.name!r}: {self._num_waiting} requests wait for their "
                f"replies: {self._waiting}"
            )

    def release_all(self) -> None:
        """Give back what is in flight and what nobody is blamed for, with no attempt counted."""
        for work in [*self._in_flight.values(), *(work for work, _ in self._suspects)]:
            self._schedule.release(work)
        self._in_flight.clear()
        self._suspects.clear()

    def _read(self, work: Work, reply: Reply) -> Outcome:
        try:
            return self._read_reply(work, reply)
        except ValueError as error:
            result = {"reply": reply.text, "model": reply.model}
            return Outcome.failed(f"unreadable reply: {error}", result=result)

    def _take_failure(self, work: Work, failure: TeacherError) -> None:
        if failure.kind == "access":
            self._suspects.append((work, failure))
            raise TeacherDownError(
                f"teacher {self._teacher.name!r} does not let us in: {failure}; what is done is "
                "kept: mend it and run again"
            ) from failure
        self._suspects.append((work, failure))
        if len(self._suspects) >= MAX_CONSECUTIVE_FAILURES:
            self._raise_down()

    def _settle_last_suspects(self) -> None:
        """Decide about failures after which nothing is left to ask."""
        was_never_reached = not self._counts.num_replies and all(
            failure.kind in _UNREACHED and work.attempt == 1 for work, failure in self._suspects
        )
        if was_never_reached or len(self._suspects) >= _MIN_CONSECUTIVE_FAILURES:
            self._raise_down()
        self._blame_suspects()

    def _blame_suspects(self) -> None:
        for work, failure in self._suspects:
            self._record_failure(work, failure)
        self._suspects.clear()

    def _record_failure(self, work: Work, failure: TeacherError) -> None:
        self._schedule.record_failed(
            work, f"{failure.kind}: {failure}", is_final=not failure.retryable
        )

    def _raise_down(self) -> None:
        failure = self._suspects[-1][1]
        raise TeacherDownError(
            f"teacher {self._teacher.name!r}: {len(self._suspects)} requests failed one after "
            f"another, the last one by {failure.kind}: {failure}; what is done is kept and no "
            "attempt is counted: mend the teacher and run again"
        ) from failure
