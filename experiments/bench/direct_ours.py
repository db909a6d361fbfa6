"""Our side of the direct bench: the recipe's own fit on text pairs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from recipe_steps import build_trainer
from text_training import TextTraining, measure_side

from tracelib.recipe import RecipeCLI


class StepClock(Callback):
    """Keeps when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Take the time."""
        self.ends.append(time.perf_counter())


def build_ours(training: TextTraining) -> RecipeCLI:
    """Return module, data and trainer; embeddings are the last token's, as theirs."""
    settings: dict[str, Any] = {
        "data.root": Path(training.folder) / "tree",
        "data.num_workers": 0,
        "data.contrastive_batch_size": training.batch_size,
        "data.micro_batch_size": training.micro_batch_size,
        "data.task_mixing": "mixed",
        "model.encoder.init_args.read_offset": 0,
        "model.encoder.init_args.train_projector": "false",  # text has no pictures
        "trainer.max_epochs": -1,
        "trainer.max_steps": training.num_steps,
    }
    if training.lora_rank is None:
        settings["model.encoder.init_args.lora"] = "null"
    return build_trainer(Path(training.config), settings)


def load(training: TextTraining) -> tuple[Callable[[], object], list[float]]:
    """Load module and data; return what fits, and where the ends of its steps go."""
    cli, clock = build_ours(training), StepClock()
    cli.datamodule.setup("fit")
    cli.trainer.callbacks.append(clock)
    return lambda: cli.trainer.fit(cli.model, cli.datamodule), clock.ends


if __name__ == "__main__":
    measure_side(load)
