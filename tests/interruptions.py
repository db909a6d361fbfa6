"""A callback that stops a fit where it is told to, as a crash, a kill or a pre-emption does."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning import Callback, LightningModule, Trainer

CLASS_PATH = "tests.interruptions.StopAt"


class StoppedError(RuntimeError):
    """The fit crashed, as it was to."""


class StopAt(Callback):
    """Stops once `step` steps are done, at some moment.

    Args:
        step: Steps done.
        moment: `step` is in the step's end, `validation` in the midst of a validation, `validated`
            right after what was found was saved, `epoch_start` before the next step.
        how: `raise` raises `StoppedError`; `terminate` is SIGTERM to the group of processes,
            `terminate_one` to the last rank alone.
    """

    def __init__(
        self,
        step: int,
        moment: Literal["step", "validation", "validated", "epoch_start"] = "step",
        how: Literal["raise", "kill", "terminate", "terminate_one"] = "raise",
    ) -> None:
        self.step, self.moment, self.how = step, moment, how

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._stop(trainer, "step")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._stop(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer, "validated")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer, "epoch_start")

    def _stop(self, trainer: Trainer, moment: str) -> None:
        if trainer.global_step != self.step or moment != self.moment:
            return
        if self.how == "raise":
            raise StoppedError
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "terminate":
            # From another process, as a job's manager is; it is of the group, too, and ends.
            subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"], check=False)
        elif trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def set_stop(run: Path, **options: Any) -> None:
    """Change where a run's recipe stops; without options, it does not any more."""
    path = run / "config.yaml"
    recipe = yaml.safe_load(path.read_text())
    others = [c for c in recipe["trainer"]["callbacks"] if c["class_path"] != CLASS_PATH]
    stop = [{"class_path": CLASS_PATH, "init_args": options}] if options else []
    recipe["trainer"]["callbacks"] = others + stop
    path.write_text(yaml.safe_dump(recipe))
