"""The experiment on rationales is scripts in a folder of their own, which tests import."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "cot"


@pytest.fixture
def load_script(monkeypatch) -> Callable[[str], ModuleType]:
    """Import a script by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module
