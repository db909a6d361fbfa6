"""The most memory that a piece of work needs, in a process that does nothing else."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path

import torch

_LOOK_SECONDS = 0.003


def measure_peak(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Do the work; return the bytes held before it, and the most held during it.

    On a GPU these are the allocator's own counts. On the CPU they are all of the process's memory
    but for mapped files, Python and torch included, looked at every few milliseconds; what the C
    library has kept of memory that was freed before goes back first (Linux, glibc).
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return float(before), float(torch.cuda.max_memory_allocated())
    ctypes.CDLL(None).malloc_trim(0)
    is_done = threading.Event()
    seen = [_read_anonymous_bytes()]

    def watch() -> None:
        while not is_done.wait(_LOOK_SECONDS):
            seen.append(_read_anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        is_done.set()
        watcher.join()
    return float(seen[0]), float(max(seen))


def _read_anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
