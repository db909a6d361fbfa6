"""When a run is saved, so that it can be stopped at any moment and go on as if it had not been."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tracelib.callbacks.adapter_checkpoint import AdapterCheckpointIO, find_checkpoint
from tracelib.retrieval.whole_files import remove_partial_files

_EXIT_CODE = 128 + signal.SIGTERM


class RunCheckpoint(Checkpoint):
    """Keeps one checkpoint of a fit, `checkpoints/last.ckpt`, and `adapter.safetensors` beside it.

    It is saved every few steps, before and after each validation, at the end, and on SIGTERM, which
    one process or all may get: the step that runs is finished and saved, then all stop with exit
    code 143. A validation that is interrupted begins anew.

    Lightning's `ModelCheckpoint` saves before a step's metrics reach the logger and, when the step
    is an epoch's last, in a state that goes on without the validation; `save_on_exception` follows
    a signal handler that talks to the other ranks wherever the signal found the process.

    Args:
        every_n_steps: Steps between saves, at least 1; a kill loses at most these.

    Raises:
        ValueError: `every_n_steps` is less than 1.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"every_n_steps is {every_n_steps}, must be at least 1 (checkpoint.every_n_steps)"
            )
        self.every_n_steps = every_n_steps
        self._run = Path()
        self._saved_step: int | None = None
        self._is_told_to_stop = self._is_saving = self._is_validation_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder, and remove what a killed run left half written there."""
        if stage != "fit":
            return
        self._run = Path(str(trainer.log_dir))
        trainer.strategy.checkpoint_io = AdapterCheckpointIO(self._run)
        if trainer.is_global_zero:
            remove_partial_files(self._run)
            remove_partial_files(find_checkpoint(self._run).parent)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for SIGTERM, in place of Lightning, which gives the signal back at the end."""

        def note(number: int, frame: FrameType | None) -> None:
            self._is_told_to_stop = True
            launcher = trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGTERM)  # the processes that this one started

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, note)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save what the steps until now have made, when it is time or all are to stop.

        Only now have the metrics of the last step reached the logger.
        """
        is_stop = trainer.strategy.reduce_boolean_decision(self._is_told_to_stop, all=False)
        is_time = is_stop or trainer.global_step % self.every_n_steps == 0
        if is_time and trainer.global_step != self._saved_step and _is_savable(trainer, batch_idx):
            self._save(trainer)
        if is_stop and trainer.global_step == self._saved_step:
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, so that an interrupted fit goes on with this validation."""
        if _is_validation_of_fit(trainer):
            self._save(trainer, is_validation_due=True)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop, if this process is to and nothing was trained since the last save."""
        # Ranks validate different numbers of batches, so each decides for itself.
        if self._is_told_to_stop and trainer.global_step == self._saved_step:
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, so that what was found is not found twice."""
        if _is_validation_of_fit(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what a fit ended with."""
        self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Describe the progress as Lightning has it between two steps, or before a validation."""
        if not self._is_saving:
            return
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]
        for count in ("current", "total"):  # a batch that was only fetched is drawn again
            batches[count]["ready"] = batches[count]["completed"]
        batches["is_last_batch"] = batches["current"]["completed"] >= trainer.num_training_batches
        # A validation that is over, or one as in the midst of its first batch, which is begun anew.
        counts = loops["epoch_loop.val_loop.batch_progress"]
        due = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        over = dict.fromkeys(due, counts["total"]["completed"])
        counts["total"] = due if self._is_validation_due else over
        counts["current"] = dict.fromkeys(due, 0)

    def _save(self, trainer: Trainer, is_validation_due: bool = False) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # what is logged is on disk before the steps that it tells of are behind
        self._is_saving, self._is_validation_due = True, is_validation_due
        trainer.save_checkpoint(find_checkpoint(self._run), weights_only=False)
        self._is_saving = False
        self._saved_step = trainer.global_step

    def _stop(self, trainer: Trainer) -> None:
        rank_zero_info(
            f"SIGTERM: stopped after step {trainer.global_step}, which is saved; go on with "
            f"python -m tracelib resume --run {self._run}"
        )
        raise SIGTERMException(_EXIT_CODE)


def _is_savable(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a fit can be saved right before a batch."""
    # Right after a validation, and at an epoch's first batch, Lightning would take a validation for
    # skipped and count a step too many; that validation has saved the step.
    is_whole_fit = trainer.check_val_every_n_epoch is None
    number = trainer.fit_loop.total_batch_idx if is_whole_fit else batch_idx
    is_validated = trainer.enable_validation and number % (trainer.val_check_batch or math.inf) == 0
    return batch_idx > 0 and not is_validated and _is_between_steps(trainer, batch_idx)


def _is_between_steps(trainer: Trainer, num_batches: int) -> bool:
    """Whether no gradients are accumulated after so many batches of an epoch."""
    is_last = num_batches == trainer.num_training_batches
    return is_last or num_batches % trainer.accumulate_grad_batches == 0


def _is_validation_of_fit(trainer: Trainer) -> bool:
    """Whether a fit validates, and can be saved then."""
    is_fit = trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking
    return is_fit and _is_between_steps(trainer, trainer.fit_loop.batch_idx + 1)
