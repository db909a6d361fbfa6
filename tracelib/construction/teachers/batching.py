"""Turns single asks into batches: those that come while one is worked on make up the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tracelib.construction.teachers.teacher import Reply, Request, TeacherError

_SETTLE_SECONDS = 0.005
Answer = Reply | TeacherError
Answerer = Callable[[Sequence[Request]], Sequence[Answer]]
"""Answers the requests of a batch, each with its reply or its failure."""


class RequestBatches:
    """Gathers requests and has a thread answer them, one batch after the other.

    A batch starts when it is full or when nothing has come for a moment, so that those who were
    answered together can ask again together.

    Args:
        answer: Answers a batch; called in one thread that is not the event loop's.
        batch_size: Most requests of a batch.
    """

    def __init__(self, answer: Answerer, batch_size: int) -> None:
        self._answer, self._batch_size = answer, batch_size
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher")
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> Reply:
        """Answer a request together with others.

        Raises:
            TeacherError: It has no reply.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Let the batch at work come to its end; whoever still waits is cancelled."""
        worker, self._worker = self._worker, None
        if worker:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        await asyncio.to_thread(self._thread.shutdown)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await self._settle()
            asking = [pair for pair in self._waiting if not pair[1].done()]  # some gave up
            batch, self._waiting = asking[: self._batch_size], asking[self._batch_size :]
            requests = [request for request, _ in batch]
            try:
                answers = await loop.run_in_executor(self._thread, self._answer, requests)
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as error:
                answers = [_name_breakdown(error) for _ in batch]
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Reply):
                    future.set_result(answer)
                else:
                    future.set_exception(answer)

    async def _settle(self) -> None:
        num_waiting = 0
        while num_waiting < len(self._waiting) < self._batch_size:
            num_waiting = len(self._waiting)
            await asyncio.sleep(_SETTLE_SECONDS)


def _name_breakdown(error: Exception) -> TeacherError:
    """Return the failure of a request whose whole batch failed: it tells of the teacher."""
    message = f"{type(error).__name__}: {error}; if memory ran out, lower batch_size"
    failure = TeacherError(True, "server", message)
    failure.__cause__ = error
    return failure
