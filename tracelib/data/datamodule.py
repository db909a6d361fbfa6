"""The LightningDataModule of any tree in M-BEIR's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from tracelib.data.collator import ChatProcessor
from tracelib.data.datasets import (
    CandidateDataset,
    QueryDataset,
    RationalePolicy,
    RecordRenderer,
    TrainDataset,
)
from tracelib.data.evaluation_set import EvaluationSet
from tracelib.data.held_out import build_held_out_set, mark_held_out
from tracelib.data.instructions import PromptPolicy
from tracelib.data.mbeir import DataError, MBEIRReader, check_positives
from tracelib.data.query_table import QueryTable
from tracelib.data.route_labels import RouteTargets, read_route_labels
from tracelib.data.sampler import TaskBatchSampler, TaskMixing, describe_untrained_tasks
from tracelib.data.tables import CandidateTable
from tracelib.distributed import get_rank, get_world_size
from tracelib.prompts import Template
from tracelib.types import CandidateBatch, QueryBatch, TrainBatch

_Batch = TypeVar("_Batch")
EvaluationLoaders = list[DataLoader[QueryBatch] | DataLoader[CandidateBatch]]
EvaluationPlan = Callable[[str], tuple[list[list[int]], list[list[int]]]]


TrainFile = Literal["separate", "union_up"]


class MBEIRDataModule(lightning.LightningDataModule):
    """Training pairs, and queries with their local and union pools for evaluation.

    Args:
        root: Data root: a folder in M-BEIR's layout.
        backbone: Folder or hub name of the tokenizer and image processor; linked to the model's.
        emb_token: The embedding token; linked to the model's.
        batch_size: Training queries per device and step. Accumulating gradients does not make it
            larger: in-batch negatives come from one step.
        eval_batch_size: Queries or candidates that a device reads at once in evaluation.
        eval_window: Batches of queries whose thoughts are written together in evaluation: a query
            that is done makes room for one of the next batch. More is faster, and loses more
            work when interrupted; at most 1,024 queries.
        rationale: What is written before the embedding token in training: `none`, `teacher`
            (target-blind) or `oracle`.
        num_hard_negatives: Hard negatives per training query.
        task_mixing: Whether a training batch is drawn from one task or from all.
        query_template: Words of the query side.
        candidate_template: Words of the candidate side.
        prompt_policy: Which of a row's instructions evaluation takes; `all` evaluates each query
            under every one. Training draws one per query.
        max_text_tokens: Longest text of a record, in tokens.
        min_pixels: Smallest picture after resizing; null keeps the backbone's.
        max_pixels: Largest picture after resizing; null keeps the backbone's.
        num_workers: Worker processes per loader.
        seed: Seed of batches and training prompts.
        cache_dir: Folder for the tables that the data's files are converted to when they are read
            first, about as large as these files; null keeps them in `.tracelib` of the root.
        train_file: `separate` reads the train queries of each data set from its own file,
            `union_up` all from the one file in which M-BEIR repeats those of small data sets.
        held_out: Share of the training queries that a fit leaves out, 0 .. 1, chosen by `seed` and
            query id; `route-labels` judges the model on them.
        route_labels: File that `route-labels` wrote: the router learns its labels, and nothing of
            queries without one; null has it learn the annotated difficulty. Rationales stay as
            annotated.
        route_targets: Which labels of that file: `hard` 1 or 0, `soft` the probability that a query
            should think.

    Raises:
        FileNotFoundError: `root` is no folder.
        ValueError: A size is out of its range.
    """

    def __init__(
        self,
        root: Path,
        backbone: str = "embedded",
        emb_token: str = "<|emb|>",
        batch_size: int = 64,
        eval_batch_size: int = 64,
        eval_window: int = 8,
        rationale: RationalePolicy = "teacher",
        num_hard_negatives: int = 0,
        task_mixing: TaskMixing = "mixed",
        query_template: Template = Template(),
        candidate_template: Template = Template(),
        prompt_policy: PromptPolicy = "fixed",
        max_text_tokens: int = 512,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        num_workers: int = 1,
        seed: int = 0,
        cache_dir: Path | None = None,
        train_file: TrainFile = "separate",
        held_out: float = 0.0,
        route_labels: Path | None = None,
        route_targets: RouteTargets = "hard",
    ) -> None:
        super().__init__()
        for name, size in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("eval_window", eval_window),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}, must be at least 1 (data.{name})")
        if num_hard_negatives < 0:
            raise ValueError(f"num_hard_negatives is {num_hard_negatives}, must be >= 0 (data)")
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out is {held_out}, allowed 0 .. 1 without 1 (data.held_out)")
        if not Path(root).is_dir():
            raise FileNotFoundError(
                f"data.root {str(root)!r} is no folder (make scenes writes data/scenes)"
            )
        self.root, self.batch_size, self.eval_batch_size = Path(root), batch_size, eval_batch_size
        self.eval_window = eval_window
        self.rationale, self.num_hard_negatives = rationale, num_hard_negatives
        self.task_mixing, self.prompt_policy = task_mixing, prompt_policy
        self.num_workers, self.seed, self.train_file = num_workers, seed, train_file
        self.held_out, self.route_labels = held_out, route_labels
        self.route_targets: RouteTargets = route_targets
        self.reader = MBEIRReader(self.root, cache_dir)
        self.processor = ChatProcessor(backbone, emb_token, min_pixels, max_pixels)
        self.renderer = RecordRenderer(
            self.root,
            self.processor,
            query_template,
            candidate_template,
            emb_token,
            max_text_tokens,
        )
        self.evaluation_sets: dict[str, EvaluationSet] = {}
        # Set by who collects the embeddings: the batches of queries and candidates it still lacks.
        self.plan_evaluation: EvaluationPlan | None = None

    def setup(self, stage: str) -> None:
        """Read the splits a stage needs."""
        if stage == "fit":
            self._set_up_training()
        split = "val" if stage in ("fit", "validate") else "test"
        if split not in self.evaluation_sets:
            self.evaluation_sets[split] = self.reader.read_evaluation_set(
                split, self.prompt_policy, self.seed
            )

    def _set_up_training(self) -> None:
        queries, pool = self._read_training_records()
        labels = None
        if self.route_labels is not None:
            labels = read_route_labels(self.route_labels, queries, self.route_targets)
        if self.held_out:
            is_trained = ~mark_held_out(queries.ids, self.held_out, self.seed)
            queries = queries.select(is_trained)
            labels = None if labels is None else labels[is_trained]
        if labels is not None and not (labels >= 0).any():
            raise DataError(
                f"{self.route_labels} has no label for any of the {len(queries)} queries that are "
                f"trained on (data.route_labels); data.held_out is {self.held_out}: at 0 no query "
                "is left out"
            )
        self.train_dataset = TrainDataset(
            queries,
            pool,
            self.renderer,
            self.rationale,
            self.num_hard_negatives,
            route_labels=labels,
        )
        if self.task_mixing == "one_task_per_batch":
            global_batch_size = self.batch_size * get_world_size()
            if note := describe_untrained_tasks(queries.task_ids, global_batch_size):
                rank_zero_info(note)

    def _read_training_records(self) -> tuple[QueryTable, CandidateTable]:
        """Read all training queries, those that are held out included, and their pool."""
        if self.train_file == "union_up":
            queries = self.reader.read_union_up_queries("random", self.seed)
        else:
            queries = self.reader.read_queries("train", None, "random", self.seed)
        pool = self.reader.read_union_pool("train")
        check_positives(queries, pool, self.root, self.num_hard_negatives)
        return queries, pool

    def set_up_held_out(self) -> None:
        """Read the queries that a fit leaves out, and their pool, as the evaluation set `train`.

        Raises:
            ValueError: There is none.
        """
        records = self._read_training_records()
        self.evaluation_sets["train"] = build_held_out_set(*records, self.held_out, self.seed)

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Return the training batches of the trainer's current epoch.

        Workers draw the first batches before Lightning names the epoch to the sampler, so a resumed
        run needs a loader made after its epoch is known.

        Raises:
            ValueError: The trainer does not make loaders anew every epoch.
        """
        tasks = self.train_dataset.queries.task_ids.tolist()
        sampler = TaskBatchSampler(
            tasks, self.batch_size, self.task_mixing, self.seed, get_rank(), get_world_size()
        )
        if self.trainer is not None:
            if (reload := self.trainer.reload_dataloaders_every_n_epochs) != 1:  # type: ignore[attr-defined]
                raise ValueError(
                    f"trainer.reload_dataloaders_every_n_epochs is {reload}, must be 1: a resumed "
                    "run would repeat an epoch's batches"
                )
            sampler.set_epoch(self.trainer.current_epoch)
        return DataLoader(
            self.train_dataset, batch_size=None, sampler=sampler, num_workers=self.num_workers
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave queries in host memory: the engine moves them part by part."""
        if isinstance(batch, QueryBatch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def val_dataloader(self) -> EvaluationLoaders:
        """Return what is to be embedded of the val split: queries, and candidates."""
        return self._build_planned_loaders("val")

    def test_dataloader(self) -> EvaluationLoaders:
        """Return what is to be embedded of the test split: queries, and candidates."""
        return self._build_planned_loaders("test")

    predict_dataloader = test_dataloader

    def _build_planned_loaders(self, split: str) -> EvaluationLoaders:
        if self.plan_evaluation is None:
            raise ValueError(
                "nobody asks for embeddings: add tracelib.callbacks.retrieval_evaluation."
                "RetrievalEvaluation to trainer.callbacks, or set trainer.limit_val_batches to 0"
            )
        return self.build_evaluation_loaders(split, *self.plan_evaluation(split))

    def build_evaluation_loaders(
        self, split: str, query_batches: list[list[int]], candidate_batches: list[list[int]]
    ) -> EvaluationLoaders:
        """Return loaders of a split's queries and candidates.

        Args:
            split: `val` or `test`, already set up.
            query_batches: Places of the queries of each batch.
            candidate_batches: Places of the candidates of each batch.
        """
        found = self.evaluation_sets[split]
        return [
            self._build_loader(
                QueryDataset(found.queries, self.renderer, self.eval_batch_size), query_batches
            ),
            self._build_loader(
                CandidateDataset(found.candidates, self.renderer), candidate_batches
            ),
        ]

    def _build_loader(
        self, dataset: Dataset[_Batch], batches: list[list[int]]
    ) -> DataLoader[_Batch]:
        return DataLoader(dataset, batch_size=None, sampler=batches, num_workers=self.num_workers)
