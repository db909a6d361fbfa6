"""What importing the package sets."""

import os
import subprocess
import sys

import pytest

VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize("value", [None, "7"])
def test_the_user_has_the_last_word_on_shapes_whose_code_is_kept(value):
    others = {name: text for name, text in os.environ.items() if name != VARIABLE}
    told = subprocess.run(
        [sys.executable, "-c", f"import os, tracelib; print(os.environ[{VARIABLE!r}])"],
        env=others | ({VARIABLE: value} if value else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == (value or "32")
