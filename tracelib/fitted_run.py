"""A fitted run with a split of its data, ready to embed, and the gates it can be asked under."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.metrics.calibration import RouterCalibration, read_calibration
from tracelib.models.gates import (
    AlwaysGate,
    FirstTokenGate,
    Gate,
    HeadGate,
    NeverGate,
    TaskPriorGate,
)
from tracelib.module import RetrievalModule
from tracelib.recipe import load_run, read_recipe


@dataclass(frozen=True)
class HeadOptions:
    """When the head gate thinks; at most one is given, by default a threshold of a half.

    Args:
        threshold: From this probability on, calibrated where the run is; 0 thinks always.
        budget: Share of queries that are to think, 0 .. 1; needs `calibrate`.
        queries_per_second: Speed to reach, as measured by `calibrate` on this device; needs it.
    """

    threshold: float | None = None
    budget: float | None = None
    queries_per_second: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """What was chosen, by name."""
        return {name: v for name, v in dataclasses.asdict(self).items() if v is not None}


AT_A_HALF = HeadOptions()


@dataclass(frozen=True)
class LoadedRun:
    """A fitted run, ready to embed.

    Args:
        name: What it is called in tables.
        folder: Where it lies.
        split: The split that is set up, `val` or `test`.
        module: Its model in evaluation mode, its adapter merged.
        data: Its records.
        config: Its recipe.
        fingerprint: Digest of its weights.
    """

    name: str
    folder: Path
    split: str
    module: RetrievalModule
    data: MBEIRDataModule
    config: dict[str, Any]
    fingerprint: str

    @property
    def calibration_file(self) -> Path:
        """Where `calibrate` writes."""
        return self.folder / "calibration.json"

    @cached_property
    def calibration(self) -> RouterCalibration | None:
        """What `calibrate` found, None where it was not run.

        Raises:
            ValueError: The file holds something else, or is of other weights.
        """
        path = self.calibration_file
        if not path.exists():
            return None
        found = read_calibration(path)
        if json.loads(path.read_text()).get("weights") != self.fingerprint:
            raise ValueError(
                f"{path} is of other weights than {self.folder} has now: run "
                f"python -m tracelib calibrate --run {self.folder}"
            )
        return found

    @property
    def evaluation_folder(self) -> Path:
        """Where what is found on the split goes."""
        return self.folder / ("evaluation" if self.split == "test" else f"evaluation_{self.split}")


def is_thinking(folder: Path) -> bool:
    """Whether the recipe of a run was trained on rationales."""
    return bool(read_recipe(folder)["data"]["rationale"] != "none")


def load_split(folder: Path, split: str, name: str) -> LoadedRun:
    """Load a fitted run, with a split of its data set up and its adapter merged.

    Raises:
        FileNotFoundError: The folder holds no finished run.
    """
    module, data, config = load_run(folder)
    data.setup("validate" if split == "val" else "test")
    fingerprint = module.compute_fingerprint()
    module = module.to("cuda" if torch.cuda.is_available() else "cpu")
    module.encoder.prepare_inference()
    return LoadedRun(name, folder, split, module, data, config, fingerprint)


def choose_gates(loaded: LoadedRun, options: HeadOptions) -> list[Gate]:
    """Return the gates that a run can be asked under: all, less what it was not trained for.

    Args:
        loaded: A run.
        options: When the head thinks.

    Raises:
        ValueError: The head needs a calibration that is not there, or cannot meet what is asked.
    """
    if not is_thinking(loaded.folder):
        return [NeverGate()]
    head = [] if loaded.module.router is None else [_build_head(loaded, options)]
    return [NeverGate(), AlwaysGate(), FirstTokenGate(), *head, TaskPriorGate()]


def _build_head(loaded: LoadedRun, options: HeadOptions) -> HeadGate:
    """Return the head gate of a run, calibrated where the run is."""
    path, is_calibrated = loaded.calibration_file, loaded.calibration is not None
    if not is_calibrated and (options.budget is not None or options.queries_per_second is not None):
        raise ValueError(
            f"--gate asks for {options.given}, but {path} is missing: run "
            f"python -m tracelib calibrate --run {loaded.folder}"
        )
    return HeadGate(**options.given, calibration=path if is_calibrated else None)
