"""Keeps a teacher busy: so many requests in flight, each result as soon as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable

from tracelib.construction.teachers.teacher import Reply, Request, Teacher, TeacherError

Outcome = Reply | TeacherError
"""What became of a request."""


class TeacherDownError(ValueError):
    """A teacher that answers nothing any more."""


async def run_requests(
    requests: AsyncIterable[Request] | Iterable[Request],
    teacher: Teacher,
    on_result: Callable[[Request, Outcome], None],
    concurrency: int,
    max_consecutive_failures: int = 100,
) -> None:
    """Ask every request; a failure of one is a result and never stops the others.

    A request is taken from `requests` when a place is free for it, so only `concurrency` of them
    are held. When the run is cancelled or stops, those in flight are cancelled without a result.

    Args:
        requests: What to ask.
        teacher: Whom to ask; already entered.
        on_result: Takes a request and its reply or failure, in the order they come in. What it
            raises stops the run.
        concurrency: Requests in flight, 1 and above.
        max_consecutive_failures: Failures without a reply between them that stop the run, 1 and
            above; all of them are results.

    Raises:
        TeacherDownError: So many requests failed one after another.
        ValueError: A number is out of its range.
    """
    _check_at_least_one("concurrency", concurrency)
    _check_at_least_one("max_consecutive_failures", max_consecutive_failures)
    source = _iterate(requests)
    turn = asyncio.Lock()  # an asynchronous generator must not be asked by two at once
    num_failures = 0

    async def work() -> None:
        nonlocal num_failures
        while True:
            async with turn:
                request = await anext(source, None)
            if request is None:
                return
            outcome = await _ask(teacher, request)
            on_result(request, outcome)
            if not isinstance(outcome, TeacherError):
                num_failures = 0
                continue
            num_failures += 1
            if num_failures >= max_consecutive_failures:
                raise TeacherDownError(_describe_down(teacher.name, num_failures, outcome))

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await source.aclose()


async def _ask(teacher: Teacher, request: Request) -> Outcome:
    try:
        return await teacher.ask(request)
    except TeacherError as error:
        return error
    except Exception as error:
        return _name_unexpected(error)


def _name_unexpected(error: Exception) -> TeacherError:
    failure = TeacherError(False, "unexpected", f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


async def _iterate(
    requests: AsyncIterable[Request] | Iterable[Request],
) -> AsyncGenerator[Request, None]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


def _describe_down(name: str, num_failures: int, last: TeacherError) -> str:
    return (
        f"teacher {name!r}: {num_failures} requests failed one after another, the last one by "
        f"{last.kind}: {last}; what is done is kept: mend the teacher and run again, or raise "
        "max_consecutive_failures if these requests are at fault themselves"
    )


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; allowed 1 and above")
