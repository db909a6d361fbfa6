"""Whole training steps of a recipe without a trainer: forward, backward, clipping, optimizer."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.joint_step import StepOutput
from tracelib.module import RetrievalModule
from tracelib.recipe import RecipeCLI, build_cli
from tracelib.types import TrainBatch

_CLIP_NORM = 1.0  # the recipes' trainer.gradient_clip_val
_MAX_DIFFERENCE = 1e-5
_Result = TypeVar("_Result")


def build_trainer(config: Path, settings: Mapping[str, Any]) -> RecipeCLI:
    """Return a recipe's module, data and trainer, which writes nothing.

    Args:
        config: The recipe.
        settings: Values in place of the recipe's own, by dotted key.
    """
    quiet = {
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
        "trainer.callbacks": "null",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.limit_val_batches": 0,
    }
    values = [f"--{key}={value}" for key, value in (quiet | dict(settings)).items()]
    return build_cli([f"--config={config}", *values], run=False)


def build_recipe(
    config: Path, settings: Mapping[str, Any]
) -> tuple[RetrievalModule, MBEIRDataModule]:
    """Return a recipe's module and its data, ready to train."""
    cli = build_trainer(config, settings)
    cli.datamodule.setup("fit")
    return cli.model, cli.datamodule


class RecipeStep:
    """Trains a module batch by batch, as its recipe does.

    Args:
        module: The module.
    """

    def __init__(self, module: RetrievalModule) -> None:
        self.module = module.train()
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.optimizer = module.optimizer(self.trained.values())
        self.num_steps = 0

    def compute_gradients(self, batch: TrainBatch) -> StepOutput:
        """Go forward and backward; gradients add up until the next step."""
        if self.module.own_thoughts is not None:
            batch = self.module.own_thoughts.add_to(batch, self.num_steps)
        output = self.module.joint_step.run(batch, torch.autograd.backward)
        output.loss.backward()
        return output

    def take(self, batch: TrainBatch) -> None:
        """Take a whole step."""
        self.compute_gradients(batch)
        self.update()

    def update(self) -> None:
        """Clip the gradients, step, and clear them."""
        torch.nn.utils.clip_grad_norm_(self.trained.values(), _CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1

    def compare(self, plain: TrainBatch, cached: TrainBatch) -> dict[str, float]:
        """Compare loss and gradients of two forms of a batch, and take no step.

        Returns:
            `loss_difference` and `gradient_difference`, relative to the loss and to the largest
            gradient.

        Raises:
            ValueError: One is over 1e-5.
        """
        found = []
        for batch in (plain, cached):
            loss = self.compute_gradients(batch).loss.item()
            gradients = [p.grad for p in self.trained.values()]
            found.append((loss, gradients))
            self.optimizer.zero_grad()
        (loss, expected), (other_loss, others) = found
        pairs = list(zip(expected, others, strict=True))
        largest = max(float(g.abs().max()) for g in expected if g is not None)
        apart = [float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None]
        if [a is None for a, _ in pairs] != [b is None for _, b in pairs]:
            raise ValueError("other parameters have a gradient, so times mean nothing")
        values = {
            "loss_difference": abs(other_loss - loss) / abs(loss),
            "gradient_difference": max(apart) / largest,
        }
        if max(values.values()) > _MAX_DIFFERENCE:
            raise ValueError(f"the steps disagree, so times mean nothing: {values}")
        return values


def pick_places(
    task_ids: np.ndarray[Any, Any], batch_size: int, thinks: Any = None
) -> list[list[int]]:
    """Return the places of the first queries of each task, one batch per task.

    Args:
        task_ids: `[Q]` task of each query.
        batch_size: Queries of a batch; tasks with fewer are left out.
        thinks: `[Q]` which queries may be taken; None takes all.

    Raises:
        ValueError: No task has as many.
    """
    allowed = np.ones(len(task_ids), dtype=bool) if thinks is None else thinks
    groups = [np.flatnonzero((task_ids == task) & allowed) for task in np.unique(task_ids)]
    places = [group[:batch_size].tolist() for group in groups if len(group) >= batch_size]
    if not places:
        raise ValueError(f"no task has {batch_size} such queries: take smaller batches")
    return places


def time_in_turns(sides: Mapping[str, Callable[[], object]], num_runs: int) -> dict[str, float]:
    """Return the median seconds of each side, whose runs alternate; one more warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(num_runs + 1):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if run:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def run_alone(call: Callable[..., _Result], *args: Any) -> _Result:
    """Return what a function gives in a new process that does nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as processes:
        return processes.submit(call, *args).result()
