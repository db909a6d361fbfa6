"""Fills TensorBoard's HPARAMS tab, to compare runs by what was set and what it gave."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from tracelib.callbacks.retrieval_evaluation import get_latest_evaluation, summarize
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.module import RetrievalModule

_METRICS = {
    "hp/recall@5": "val/local/all_columns/recall@5",
    "hp/mean_recall": "val/local/mean_recall",
    "hp/think_rate": "val/think_rate/all",
    "hp/queries_per_second": "val/queries_per_second",
}


def collect_hyperparameters(
    trainer: Trainer, module: RetrievalModule, data: MBEIRDataModule
) -> dict[str, str | int | float]:
    """Return what tells recipes apart, flat and short; a run's config.yaml holds the rest."""
    lora_ranks = (p.shape[0] for n, p in module.encoder.named_parameters() if "lora_A" in n)
    return {
        "recipe": str(trainer.loggers[0].name),
        "rationale": data.rationale,
        "gate": module.gate.name,
        "contrastive_weight": module.joint_step.weights.contrastive,
        "lm_weight": module.joint_step.weights.lm,
        "router_weight": module.joint_step.weights.router,
        "temperature": float(module.contrastive.temperature),
        "lora_rank": next(lora_ranks, 0),
        "read_offset": module.encoder.read_offset,
        "contrastive_batch_size": data.contrastive_batch_size,
        "num_steps": int(trainer.estimated_stepping_batches),
        "learning_rate": trainer.optimizers[0].param_groups[0]["initial_lr"],
        "seed": data.seed,
    }


def _is_resumed(trainer: Trainer) -> bool:
    """Whether a fit goes on in its own folder, where all this is logged already."""
    start = trainer.ckpt_path
    return (
        start is not None and Path(str(trainer.log_dir)).resolve() in Path(start).resolve().parents
    )


class HyperparameterSummary(Callback):
    """Logs a run's hyperparameters at its start, and beside them its val metrics as they come in.

    The metrics are local-pool recall and speed over all columns; they stand at 0 until the first
    validation has ended. Loggers other than TensorBoard's get the metrics only.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the hyperparameters, with the metrics that make the tab's columns."""
        assert isinstance(pl_module, RetrievalModule)
        assert isinstance(trainer.datamodule, MBEIRDataModule)  # type: ignore[attr-defined]
        if isinstance(trainer.logger, TensorBoardLogger) and not _is_resumed(trainer):
            found = collect_hyperparameters(trainer, pl_module, trainer.datamodule)  # type: ignore[attr-defined]
            trainer.logger.log_hyperparams(found, dict.fromkeys(_METRICS, 0.0))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics."""
        if not trainer.sanity_checking:
            found = summarize("val", get_latest_evaluation(trainer).rows)
            pl_module.log_dict({name: found[source] for name, source in _METRICS.items()})
