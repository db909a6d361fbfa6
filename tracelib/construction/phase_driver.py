"""Drives a phase: work from its schedule to a teacher, and what comes of it into the journal.

A reply goes to the journal as soon as it is read. A first failure, of whatever kind, is held back
until the next reply proves that teacher and settings are in order. While none comes, the work is
given back with no attempt counted, and the run stops: nothing is lost, and no query is blamed for
what hits them all, such as a dead server or a wrong folder of pictures. What fails again counts at
once, unless the teacher was not even reached: rows that never succeed must not hold up the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from tracelib.construction.journal.progress import Progress
from tracelib.construction.journal.schedule import Schedule, Work
from tracelib.construction.phase_outcome import Counts as Counts
from tracelib.construction.phase_outcome import Outcome as Outcome
from tracelib.construction.phase_outcome import record_outcome
from tracelib.construction.teachers.dispatch import run_requests
from tracelib.construction.teachers.teacher import Reply, Request, Teacher, TeacherError

MAX_CONSECUTIVE_FAILURES = 64
"""Failures without a reply between them after which a teacher counts as down."""
_MIN_CONSECUTIVE_FAILURES = 16  # the same where no work is left to ask
_UNREACHED = ("connection", "rate_limit")  # what even a few requests tell of a teacher alone
_YIELD_SECONDS = 0.05  # how long work without a teacher keeps signals waiting


OnProgress = Callable[[Progress, Counts], None]
"""Is told at the start and after each result how far the phase is."""


class TeacherDownError(ValueError):
    """A teacher that answers nothing any more."""


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
        on_progress: Told at the start and after each result.

    Raises:
        TeacherDownError: The teacher answers nothing any more, does not let us in, or has taken the
            requests and has no replies yet.
        JournalError: A row cannot be written.
        ValueError: `concurrency` is out of its range.
    """
    on_progress(schedule.progress, Counts())
    if not schedule.progress.num_due:
        return
    drive = _Drive(schedule, teacher, build_request, read_reply, on_progress)
    try:
        async with teacher:
            await run_requests(drive.iterate_requests(), teacher, drive.take_result, concurrency)
        drive.raise_if_waiting()
    finally:
        drive.release_all()


async def run_locally(
    schedule: Schedule, judge: Callable[[Work], Outcome], on_progress: OnProgress
) -> None:
    """Do all that a phase has still to do where no teacher is needed; raises as `judge` does."""
    counts, rested = Counts(), time.monotonic()
    on_progress(schedule.progress, counts)
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
        self._is_all_taken = self._is_over = False
        self._num_first_pass = schedule.progress.num_due
        self._num_taken = self._num_waiting = 0
        self._waiting: TeacherError | None = None

    async def iterate_requests(self) -> AsyncIterator[Request]:
        """Yield requests while there is work, waiting for what is in flight where it may fail."""
        while not self._is_over:  # others ask on for a moment after one has found that it is
            self._changed.clear()
            if self._waiting and self._num_taken >= self._num_first_pass:
                return  # asking again would find no more replies
            work = self._schedule.take()
            self._is_all_taken = work is None
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
        except (ValueError, OverflowError, RecursionError) as error:  # the latter of hostile JSON
            result = {
                "reply": reply.text,
                "model": reply.model,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
            }
            return Outcome.failed(f"unreadable reply: {error}", result=result)

    def _take_failure(self, work: Work, failure: TeacherError) -> None:
        if self._is_over:
            self._schedule.release(work)
            return
        if failure.kind == "access":
            self._is_over = True
            self._schedule.release(work)  # before another reply could blame it
            raise TeacherDownError(
                f"teacher {self._teacher.name!r} does not let us in: {failure}; what is done is "
                "kept: mend it and run again"
            ) from failure
        if work.attempt > 1 and failure.kind not in _UNREACHED:
            self._record_failure(work, failure)
            return
        self._suspects.append((work, failure))
        if len(self._suspects) >= MAX_CONSECUTIVE_FAILURES and not self._is_all_taken:
            self._raise_down(is_counted=False)

    def _settle_last_suspects(self) -> None:
        """Decide about failures after which nothing is left to ask.

        Requests that never succeed take longest, so they gather here: where others of the phase
        were answered, an attempt of them is counted, and the next run is not stopped by them.
        """
        was_never_reached = not self._counts.num_replies and all(
            failure.kind in _UNREACHED and work.attempt == 1 for work, failure in self._suspects
        )
        if was_never_reached or len(self._suspects) >= _MIN_CONSECUTIVE_FAILURES:
            progress = self._schedule.progress
            self._raise_down(is_counted=progress.num_done + progress.num_dropped > 0)
        self._blame_suspects()

    def _blame_suspects(self) -> None:
        while self._suspects:
            self._record_failure(*self._suspects[0])
            del self._suspects[0]

    def _record_failure(self, work: Work, failure: TeacherError) -> None:
        self._schedule.record_failed(
            work, f"{failure.kind}: {failure}", is_final=not failure.retryable
        )

    def _raise_down(self, is_counted: bool) -> None:
        """Give the suspects back, those that reached the teacher with an attempt if it counts."""
        self._is_over = True
        num_suspects, failure = len(self._suspects), self._suspects[-1][1]
        num_counted = 0
        while self._suspects:
            work, suspected = self._suspects.pop()
            if is_counted and suspected.kind not in _UNREACHED:
                self._schedule.record_failed(work, f"{suspected.kind}: {suspected}")
                num_counted += 1
            else:
                self._schedule.release(work)
        raise TeacherDownError(
            f"teacher {self._teacher.name!r}: {num_suspects} requests failed one after another, "
            f"the last one by {failure.kind}: {failure}; what is done is kept and "
            f"{num_counted or 'no'} attempts are counted: mend the teacher and run again"
        ) from failure
