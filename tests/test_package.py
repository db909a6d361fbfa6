"""What importing the package sets."""

import os
import subprocess
import sys

import pytest

LIMITS = {"LRU_CACHE_CAPACITY": "6", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "12"}


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
