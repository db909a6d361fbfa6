"""Goes on with a fit that was stopped."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import OmegaConf

from tracelib.callbacks.retrieval_evaluation import remove_passing_stores
from tracelib.recipe import build_cli, find_checkpoint
from tracelib.retrieval.whole_files import write_whole

_LOGGERS = "lightning.pytorch.loggers."
_TENSORBOARD, _CSV = f"{_LOGGERS}TensorBoardLogger", f"{_LOGGERS}CSVLogger"


def resume(run: Path, devices: int | None = None, num_nodes: int | None = None) -> None:
    """Go on with a fit that was stopped or killed, in its folder, as if nothing had been.

    It ends with the very weights of a fit that was left alone, on as many devices as before; on
    another number, up to rounding.

    Args:
        run: Folder of the run, with its `config.yaml` and `checkpoints/last.ckpt`.
        devices: Devices of each node; null takes the recipe's.
        num_nodes: Nodes; null takes the recipe's.

    Raises:
        FileNotFoundError: The folder holds no recipe or no checkpoint.
        ValueError: The fit is over, or its recipe logs nowhere.
    """
    recipe, checkpoint = run / "config.yaml", find_checkpoint(run)
    for path, advice in ((recipe, "fit one"), (checkpoint, "it was stopped before: fit it anew")):
        if not path.exists():
            raise FileNotFoundError(f"{run} cannot be resumed, {path.name} is missing: {advice}")
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(recipe))  # type: ignore[assignment]
    trainer = config["trainer"]
    step = _check_unfinished(checkpoint, trainer)
    trainer["devices"] = trainer["devices"] if devices is None else devices
    trainer["num_nodes"] = trainer["num_nodes"] if num_nodes is None else num_nodes
    trainer["logger"] = _log_into(run, trainer["logger"], step)
    parts = ("seed_everything", "model", "data", "trainer", "checkpoint", "memory_guard")
    cli = build_cli({part: config[part] for part in parts if part in config}, run=False)
    if cli.trainer.is_global_zero:
        remove_passing_stores(run)
        for logger in cli.trainer.loggers:
            if isinstance(logger, CSVLogger):
                _keep_rows(logger, step)
    rank_zero_info(f"resuming {run} after step {step}")
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    if cli.trainer.is_global_zero:
        remove_passing_stores(run)  # that of an epoch which ended without its validation


def _check_unfinished(path: Path, trainer: dict[str, Any]) -> int:
    """Return the steps that a checkpoint has behind it; raise if the recipe asks for no more."""
    checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    step = int(checkpoint["global_step"])
    for name, done in (("max_epochs", epochs), ("max_steps", step)):
        if (limit := trainer[name]) not in (None, -1) and done >= limit:
            raise ValueError(
                f"{path} is finished: trainer.{name} is {limit}; to train on, `fit` with a larger "
                f"one and --ckpt_path={path}"
            )
    return step


def _log_into(run: Path, loggers: Any, step: int) -> list[Any]:
    """Return the loggers of a recipe, made to go on in a run's folder after `step` steps.

    Raises:
        ValueError: There is no logger, so that the run has no folder of its own.
    """
    if loggers is False:
        raise ValueError(f"{run} was fitted without trainer.logger: resume it by fit --ckpt_path")
    if loggers in (None, True):
        loggers = {"class_path": _TENSORBOARD}
    run = run.resolve()
    place = {"save_dir": str(run.parent.parent), "name": run.parent.name, "version": run.name}
    found = []
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if logger["class_path"] in (_TENSORBOARD, _CSV):
            logger = {**logger, "init_args": {**logger.get("init_args", {}), **place}}
        if logger["class_path"] == _TENSORBOARD:
            # It hides what the stopped run had logged of steps that are done again.
            logger["dict_kwargs"] = {**logger.get("dict_kwargs", {}), "purge_step": step}
        found.append(logger)
    return found


def _keep_rows(logger: CSVLogger, step: int) -> None:
    """Keep the rows of the steps that are not done again; the logger itself would drop all."""
    path = Path(logger.log_dir) / "metrics.csv"
    kept = path.with_name("metrics.kept.csv")
    source = kept if kept.exists() else path  # it is there if a resume was killed right here
    if not source.exists():
        return
    with source.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if int(row["step"]) < step]
        names = list(reader.fieldnames or [])
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(kept, text.getvalue())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        logger.experiment.metrics_keys = names  # made here, it removes what is at `path`
    kept.replace(path)
