"""Watches who thinks: the router in training, gate and router in `validate` and `test`."""

from __future__ import annotations

from collections.abc import Mapping

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torchmetrics.classification import BinaryStatScores
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_calibration_error,
    binary_stat_scores,
)

from tracelib.callbacks.retrieval_evaluation import get_latest_evaluation
from tracelib.callbacks.stored_evaluation import Evaluation
from tracelib.models.gates import HeadGate
from tracelib.module import RetrievalModule
from tracelib.types import TrainBatch

_UNKNOWN = -1


def compute_precision_recall(stat_scores: Tensor) -> dict[str, float]:
    """Return precision and recall from true and false positives, true and false negatives.

    What is undefined is left out: precision when nothing was called hard, recall when nothing was.

    >>> from torch import tensor
    >>> compute_precision_recall(tensor([3, 1, 5, 2, 5]))
    {'precision': 0.75, 'recall': 0.6}
    """
    true_positives, false_positives, _, false_negatives, _ = stat_scores.tolist()
    found = {
        "precision": (true_positives, true_positives + false_positives),
        "recall": (true_positives, true_positives + false_negatives),
    }
    return {name: hits / total for name, (hits, total) in found.items() if total}


def judge_routing(evaluation: Evaluation) -> dict[str, float]:
    """Return how well the gate in use, and the router, told hard queries from easy ones.

    Queries of unknown difficulty are left out, and so is what is undefined without hard or without
    easy queries.
    """
    thoughts, difficulty = evaluation.thoughts, evaluation.facts.difficulty
    known = difficulty != _UNKNOWN
    if not known.any():
        return {}
    thinks, target = thoughts.thinks[known].int(), difficulty[known]
    metrics = compute_precision_recall(binary_stat_scores(thinks, target))
    probability = thoughts.think_probability[known]
    if not probability.isnan().any():
        decisions = (probability >= HeadGate().threshold).int()
        head = compute_precision_recall(binary_stat_scores(decisions, target))
        head["ece"] = binary_calibration_error(probability, target).item()
        if target.any() and not target.all():
            head["auroc"] = binary_auroc(probability, target).item()
        metrics |= {f"head_{name}": value for name, value in head.items()}
    return metrics


class RoutingMonitor(Callback):
    """Logs precision and recall of the choice to think, and how the choice falls on each column.

    In training these are of the router at a half, over the steps since they were last logged. In
    `validate` and `test` they are of the gate in use and of the router, which needs a
    `RetrievalEvaluation` before this callback.
    """

    def __init__(self) -> None:
        self.stat_scores = BinaryStatScores(ignore_index=_UNKNOWN)
        self._logged_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the module to its device."""
        self.stat_scores = self.stat_scores.to(pl_module.device)
        self._logged_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: TrainBatch,
        batch_idx: int,
    ) -> None:
        """Count a batch, and log every `trainer.log_every_n_steps` steps."""
        assert isinstance(pl_module, RetrievalModule)
        assert isinstance(outputs, Mapping)
        if pl_module.router is None:
            return
        decisions = (outputs["router_logits"] >= 0).int()
        self.stat_scores.update(decisions, outputs["difficulty"].round().int())
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        # With accumulated gradients several batches end at the same step.
        if not interval or step % interval or step == self._logged_step:
            return
        self._logged_step = step
        found = compute_precision_recall(self.stat_scores.compute())
        pl_module.log_dict({f"train/router_{name}": value for name, value in found.items()})
        self.stat_scores.reset()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the routing of the val split."""
        if not trainer.sanity_checking:
            pl_module.log_dict(summarize_routing("val", get_latest_evaluation(trainer)))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the routing of the test split."""
        pl_module.log_dict(summarize_routing("test", get_latest_evaluation(trainer)))


def summarize_routing(split: str, evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics to log: routing, think rates by difficulty, length of thoughts."""
    judged = judge_routing(evaluation)
    metrics = {f"{split}/routing/{name}": value for name, value in judged.items()}
    for row in evaluation.rows:
        if row.metric == "think_rate" and row.column != "all" and row.subset != "all":
            metrics[f"{split}/think_rate_by_difficulty/{row.column}/{row.subset}"] = row.value
    thoughts = evaluation.thoughts
    if thoughts.thinks.any():
        mean_tokens = thoughts.num_tokens[thoughts.thinks].mean().item()
        metrics[f"{split}/tokens_per_thinking_query"] = mean_tokens
    return metrics
