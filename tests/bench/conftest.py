"""The benches are scripts in a folder of their own: tests import its files, or run a copy."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "bench"


@pytest.fixture
def load_script(monkeypatch) -> Callable[[str], ModuleType]:
    """Import a file of the benches by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def run_script(tmp_path) -> Callable[..., Any]:
    """Run a copy of a bench from the command line; return its report and its output."""

    def run(name: str, report: str, **options: Any) -> tuple[dict[str, Any], str]:
        folder = shutil.copytree(
            FOLDER, tmp_path / "bench", ignore=shutil.ignore_patterns("*.json")
        )
        words = [f"--{option}={value}" for option, value in options.items()]
        done = subprocess.run(
            [sys.executable, str(folder / name), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((folder / report).read_text()), done.stdout

    return run
