"""What importing the package sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMITS = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}


@pytest.mark.parametrize("own", [{}, {"LRU_CACHE_CAPACITY": "7"}])
def test_the_user_has_the_last_word_on_shapes_whose_code_is_kept(own):
    others = {name: value for name, value in os.environ.items() if name not in LIMITS}
    told = subprocess.run(
        [sys.executable, "-c", f"import os, tracelib; print(*map(os.environ.get, {[*LIMITS]}))"],
        env=others | own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == [*(LIMITS | own).values()]


COUNT_FAULTS = """
import resource, torch, tracelib
torch.set_num_threads(1)

def work():  # what is freed at the end of memory is given back, or kept
    for _ in range(20):
        [torch.ones(2**20) for _ in range(8)]

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mallopt is glibc's")
@pytest.mark.parametrize("own", [{}, {"MALLOC_TRIM_THRESHOLD_": "100000"}])
def test_freed_memory_is_used_again_unless_the_user_says_otherwise(own):
    others = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        env=others | own,
        capture_output=True,
        text=True,
        check=True,
    )
    num_pages = 20 * 8 * 4 * 2**20 // os.sysconf("SC_PAGESIZE")
    if own:  # the control
        assert int(told.stdout) > 0.5 * num_pages
    else:
        assert int(told.stdout) < 0.05 * num_pages
