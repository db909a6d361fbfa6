"""One short fit with all callbacks, shared by their tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from lightning import Callback, LightningDataModule, LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tracelib.callbacks.retrieval_evaluation import get_latest_evaluation
from tracelib.callbacks.stored_evaluation import Evaluation
from tracelib.recipe import build_cli

RECIPE = Path(__file__).parents[2] / "configs" / "trace_scenes.yaml"
CALLBACKS = (
    "retrieval_evaluation.RetrievalEvaluation",
    "routing_monitor.RoutingMonitor",
    "gallery.Gallery",
    "hyperparameters.HyperparameterSummary",
)


@pytest.fixture(scope="session")
def small_recipe(tiny_backbone, tiny_scenes) -> list[str]:
    """Arguments that make the recipe small, but for its folders."""
    options = {
        "config": RECIPE,
        "data.root": tiny_scenes,
        "data.num_workers": 0,
        "data.contrastive_batch_size": 8,
        "data.task_mixing": "mixed",
        "seed_everything": 10,
        "model.encoder.init_args.backbone": tiny_backbone,
        "model.gate": "tracelib.models.gates.HeadGate",
        "model.max_rationale_tokens": 4,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 2,
    }
    return [f"--{name}={value}" for name, value in options.items()]


class Recorder(Callback):
    """Keeps what the callbacks were given."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.evaluation: Evaluation | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append({k: v.detach().clone() for k, v in outputs.items()})

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.evaluation = get_latest_evaluation(trainer)


@dataclass
class Fit:
    """A run that ended."""

    events: EventAccumulator
    steps: list[dict[str, Tensor]]
    evaluation: Evaluation
    module: LightningModule
    data: LightningDataModule

    def read_scalars(self, tag: str) -> list[float]:
        """Return a metric's values in order."""
        return [event.value for event in self.events.Scalars(tag)]


@pytest.fixture(scope="session")
def fit(small_recipe, tmp_path_factory) -> Fit:
    """Four steps, then one validation."""
    folder = tmp_path_factory.mktemp("fit")
    callbacks = [{"class_path": f"tracelib.callbacks.{name}"} for name in CALLBACKS]
    folders = [
        f"--trainer.default_root_dir={folder}",
        f"--trainer.logger.init_args.save_dir={folder}",
    ]
    cli = build_cli(
        [*small_recipe, *folders, f"--trainer.callbacks={json.dumps(callbacks)}"], run=False
    )
    recorder = Recorder()
    cli.trainer.callbacks.append(recorder)
    cli.trainer.fit(cli.model, cli.datamodule)
    events = EventAccumulator(cli.trainer.log_dir).Reload()
    assert recorder.evaluation is not None
    return Fit(events, recorder.steps, recorder.evaluation, cli.model, cli.datamodule)
