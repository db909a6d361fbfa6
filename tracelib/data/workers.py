"""Worker processes of data loaders, forked from a server of their own that has no other threads.

A process that forks beside its threads (of gloo, of autograd, of progress bars) gives the child
their locks as they were, and nobody to release them: the worker may wait for good.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

_CHECK_SECONDS = 1.0


def start_worker_server() -> None:
    """Start the process that workers are forked from, unless it runs; return before it is ready.

    It imports what is imported here of this package, so that its workers have it from the start. It
    ends with the last process that uses it.
    """
    package = f"{__name__.partition('.')[0]}."
    multiprocessing.set_forkserver_preload([n for n in list(sys.modules) if n.startswith(package)])
    resource_tracker.ensure_running()  # the server's start would do it, and let SIGTERM through
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()  # inherits the mask: a job that is told to stop keeps it
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def get_worker_context(num_workers: int) -> BaseContext | None:
    """Return how a loader starts its workers, None if it has none."""
    if not num_workers:
        return None
    start_worker_server()
    return multiprocessing.get_context("forkserver")


def follow_parent(worker_id: int) -> None:
    """Have a worker end when its parent says so or ends, not when a whole job is told to stop.

    Else the parent would lose the batches of the step that it is about to finish.
    """
    # Where loading takes more than one core, num_workers says so.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    """Exit after SIGTERM from the parent, or its end."""
    parent = multiprocessing.parent_process()  # to the system, the server is the parent
    assert parent is not None
    while parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, _CHECK_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
