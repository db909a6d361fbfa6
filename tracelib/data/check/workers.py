"""Runs tasks in worker processes that end when their parent does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_TASKS_IN_FLIGHT = 64


@contextmanager
def open_workers(num_workers: int) -> Iterator[Executor | None]:
    """Give worker processes to run tasks in; None, which runs them in this process, for 0."""
    if not num_workers:
        yield None
        return
    with ProcessPoolExecutor(num_workers, initializer=_follow_parent) as workers:
        workers.submit(os.getpid).result()  # forked before this process has threads
        yield workers


def run_tasks(
    workers: Executor | None, function: Callable[..., _Result], tasks: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, _Result]]:
    """Yield the place and the result of each task, in the order in which they finish.

    Args:
        workers: From `open_workers`.
        function: A function of a module, called with the task's values.
        tasks: Arguments of each call.
    """
    if workers is None:
        for place, task in enumerate(tasks):
            yield place, function(*task)
        return
    remaining = enumerate(tasks)
    places: dict[Future[_Result], int] = {}
    while True:
        while len(places) < _TASKS_IN_FLIGHT and (following := next(remaining, None)):
            place, task = following
            places[workers.submit(function, *task)] = place
        if not places:
            return
        done, _ = wait(places, return_when=FIRST_COMPLETED)
        for future in done:
            yield places.pop(future), future.result()


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is killed: its queue would never say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.join,), daemon=True).start()


def _exit_after(wait_for_parent: Callable[[], None]) -> None:
    wait_for_parent()
    os._exit(1)
