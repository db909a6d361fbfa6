"""The most memory that a piece of work needs, in a process that does nothing else."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def measure_peak(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Do the work; return the bytes held before it, and the most held during it.

    On a GPU these are the allocator's own counts. On the CPU they are the kernel's: all of the
    process's memory but for mapped files, Python and torch included. What the C library has kept of
    memory that was freed before goes back first (Linux, glibc).
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return float(before), float(torch.cuda.max_memory_allocated())
    ctypes.CDLL(None).malloc_trim(0)
    (_PROCESS / "clear_refs").write_text("5")  # the peak starts anew from what is held now
    held = _read_bytes("VmRSS") - _read_bytes("RssFile")
    work()
    return held, _read_bytes("VmHWM") - _read_bytes("RssFile")


def _read_bytes(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert found is not None
    return float(found[1]) * 1024
