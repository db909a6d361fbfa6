"""Keeps a teacher busy: so many requests in flight, each result as soon as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable

from tracelib.construction.teachers.teacher import Reply, Request, Teacher, TeacherError

Outcome = Reply | TeacherError
"""What became of a request."""


async def run_requests(
    requests: AsyncIterable[Request] | Iterable[Request],
    teacher: Teacher,
    on_result: Callable[[Request, Outcome], None],
    concurrency: int,
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

    Raises:
        ValueError: `concurrency` is out of its range.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; allowed 1 and above")
    source = _iterate(requests)
    turn = asyncio.Lock()  # an asynchronous generator must not be asked by two at once

    async def work() -> None:
        while True:
            async with turn:
                request = await anext(source, None)
            if request is None:
                return
            on_result(request, await _ask(teacher, request))

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
