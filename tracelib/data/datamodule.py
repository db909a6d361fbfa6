"""The LightningDataModule of any tree in M-BEIR's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from tracelib.data.collator import ChatProcessor
from tracelib.data.datasets import CandidateDataset, QueryDataset, RecordRenderer, TrainDataset
from tracelib.data.evaluation_set import EvaluationSet
from tracelib.data.held_out import mark_share
from tracelib.data.instructions import PromptPolicy
from tracelib.data.layout import RATIONALE_FOLDER
from tracelib.data.mbeir import MBEIRReader, TextForm
from tracelib.data.pictures import ImageSlot
from tracelib.data.rationale_policy import RationalePolicy
from tracelib.data.route_labels import RouteTargets
from tracelib.data.sampler import TaskBatchSampler, TaskMixing, describe_untrained_tasks
from tracelib.data.train_loader import TrainLoader
from tracelib.data.training_records import TrainFile, TrainingRecords
from tracelib.data.workers import follow_parent, get_worker_context, start_worker_server
from tracelib.distributed import get_rank, get_world_size
from tracelib.prompts import Template
from tracelib.types import CandidateBatch, ContrastiveRationale, QueryBatch, TrainBatch

_Batch = TypeVar("_Batch")
EvaluationLoaders = list[DataLoader[QueryBatch] | DataLoader[CandidateBatch]]
EvaluationPlan = Callable[[str], tuple[list[list[int]], list[list[int]]]]


class MBEIRDataModule(lightning.LightningDataModule):
    """Training pairs, and queries with their local and union pools for evaluation.

    Args:
        root: Data root: a folder in M-BEIR's layout.
        backbone: Folder or hub name of the tokenizer and image processor; linked to the model's.
        emb_token: The embedding token; linked to the model's.
        contrastive_batch_size: Training queries of a step over all devices, each of which takes an
            even share. Accumulating gradients does not make it larger: in-batch negatives come from
            one step.
        micro_batch_size: Most sequences that a device encodes at once in training. With it or
            `micro_batch_tokens`, each is encoded twice and the activations of one chunk are held at
            a time (GradCache); with neither, those of the whole step.
        micro_batch_tokens: Most tokens that a device encodes at once in training, those of pictures
            and padding included; thoughts that the model writes itself come on top.
        eval_batch_size: Queries or candidates that a device reads at once in evaluation.
        eval_window: Batches of queries whose thoughts are written together in evaluation: a query
            that is done makes room for one of the next batch. More is faster, and loses more
            work when interrupted. Columns of fewer queries share a window.
        rationale: Text of the language-modelling loss, before the embedding token: `none`,
            `teacher` (target-blind) or `oracle` (it may have seen the target).
        contrastive_rationale: What training embeddings are read after: `annotated` the same text,
            which must not have seen the target, `oracle` though it has, `self` the thought that the
            model writes itself.
        rationale_folder: Folder below the root that holds the rationale rows.
        easy_rationales: Share of the easy queries (difficulty 0) that keep their rationale, if they
            have one, 0 .. 1, chosen by `seed` and query id; the others are trained to be answered
            at once. A model that never thought about an easy query embeds it worse after thought.
        texts: `formatted` by M-BEIR's rules, queries after an instruction of their row; `verbatim`
            as the files have them (`mmeb-train` writes such).
        num_hard_negatives: Hard negatives per training query, in the order of its row.
        task_mixing: Whether a training batch is drawn from one task or from all.
        task_weights: Weight of single tasks by M-BEIR task id, >= 0; the others have 1. A task's
            share of an epoch is in proportion to (weight x size) ** (1 / `mixing_temperature`).
        mixing_temperature: Evens out the tasks' shares, > 0: 1 keeps them, a large one makes them
            equal. An epoch has as many batches as ever: small tasks are repeated, large ones cut.
        query_template: Words of the query side.
        candidate_template: Words of the candidate side.
        prompt_policy: Which of a row's instructions evaluation takes; `all` evaluates each query
            under every one. Training draws one per query.
        max_text_tokens: Longest text of a record, in tokens.
        min_image_tokens: Fewest image tokens of a picture after resizing; null keeps the
            backbone's.
        max_image_tokens: Most image tokens of a record, shared evenly by its pictures; null keeps
            the backbone's limit for each.
        image_slot: What stands for a picture among the tokens, for backbones whose pictures are all
            one size; null for Qwen's.
        image_processor: Settings of the backbone's image processor to change, by their own names.
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
        mined_negatives: Folder that `mine` wrote, whose hard negatives are taken in place of the
            data's own; null takes these. How many is `num_hard_negatives`.
        only_annotated: Whether queries without a row in `rationale_folder` are left out of a fit.
            M-BEIR-CoT has none for a query that needs thought and got no good one: trained on, it
            would be learned as one to answer at once.

    Raises:
        FileNotFoundError: `root` is no folder.
        ValueError: A size is out of its range.
    """

    def __init__(
        self,
        root: Path,
        backbone: str = "embedded",
        emb_token: str = "<|emb|>",
        contrastive_batch_size: int = 64,
        micro_batch_size: int | None = None,
        micro_batch_tokens: int | None = None,
        eval_batch_size: int = 64,
        eval_window: int = 8,
        rationale: RationalePolicy = "teacher",
        contrastive_rationale: ContrastiveRationale = "annotated",
        rationale_folder: str = RATIONALE_FOLDER,
        easy_rationales: float = 1.0,
        texts: TextForm = "formatted",
        num_hard_negatives: int = 0,
        task_mixing: TaskMixing = "mixed",
        task_weights: dict[int, float] | None = None,
        mixing_temperature: float = 1.0,
        query_template: Template = Template(),
        candidate_template: Template = Template(),
        prompt_policy: PromptPolicy = "fixed",
        max_text_tokens: int = 512,
        min_image_tokens: int | None = None,
        max_image_tokens: int | None = None,
        image_slot: ImageSlot | None = None,
        image_processor: dict[str, Any] | None = None,
        num_workers: int = 1,
        seed: int = 0,
        cache_dir: Path | None = None,
        train_file: TrainFile = "separate",
        held_out: float = 0.0,
        route_labels: Path | None = None,
        route_targets: RouteTargets = "hard",
        mined_negatives: Path | None = None,
        only_annotated: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (
            ("contrastive_batch_size", contrastive_batch_size),
            ("micro_batch_size", micro_batch_size),
            ("micro_batch_tokens", micro_batch_tokens),
            ("eval_batch_size", eval_batch_size),
            ("eval_window", eval_window),
        ):
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}, must be at least 1 (data.{name})")
        if num_hard_negatives < 0:
            raise ValueError(f"num_hard_negatives is {num_hard_negatives}, must be >= 0 (data)")
        if mined_negatives is not None and not num_hard_negatives:
            raise ValueError(
                f"data.mined_negatives is {str(mined_negatives)!r}, but data.num_hard_negatives is "
                "0, so none would be used: set it to 1 or more"
            )
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out is {held_out}, allowed 0 .. 1 without 1 (data.held_out)")
        if not 0 <= easy_rationales <= 1:
            raise ValueError(
                f"easy_rationales is {easy_rationales}, allowed 0 .. 1 (data.easy_rationales)"
            )
        if not Path(root).is_dir():
            raise FileNotFoundError(
                f"data.root {str(root)!r} is no folder (make scenes writes data/scenes)"
            )
        self.root, self.contrastive_batch_size = Path(root), contrastive_batch_size
        self.eval_batch_size, self.eval_window = eval_batch_size, eval_window
        self.micro_batch_size, self.micro_batch_tokens = micro_batch_size, micro_batch_tokens
        self.rationale, self.num_hard_negatives = rationale, num_hard_negatives
        self.contrastive_rationale: ContrastiveRationale = contrastive_rationale
        self.task_mixing, self.prompt_policy = task_mixing, prompt_policy
        self.task_weights, self.mixing_temperature = task_weights, mixing_temperature
        self.num_workers, self.seed, self.train_file = num_workers, seed, train_file
        self.held_out, self.easy_rationales = held_out, easy_rationales
        self.reader = MBEIRReader(self.root, cache_dir, rationale_folder, texts)
        self.training_records = TrainingRecords(
            self.reader,
            train_file,
            seed,
            num_hard_negatives,
            mined_negatives,
            cache_dir,
            held_out,
            route_labels,
            route_targets,
            only_annotated,
        )
        self.processor = ChatProcessor(
            backbone, emb_token, min_image_tokens, max_image_tokens, image_slot, image_processor
        )
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
        if self.num_workers:
            start_worker_server()  # it gets ready meanwhile
        if stage == "fit":
            self._set_up_training()
        split = "val" if stage in ("fit", "validate") else "test"
        if split not in self.evaluation_sets:
            self.evaluation_sets[split] = self.reader.read_evaluation_set(
                split, self.prompt_policy, self.seed
            )

    def _set_up_training(self) -> None:
        queries, pool, labels = self.training_records.read_trained()
        self.train_dataset = TrainDataset(
            queries,
            pool,
            self.renderer,
            self.rationale,
            self.contrastive_rationale,
            self.num_hard_negatives,
            labels,
            self.micro_batch_size,
            self.micro_batch_tokens,
            None  # nothing to choose, and a million ids to hash
            if self.easy_rationales == 1
            else mark_share("easy rationales", queries.ids, self.easy_rationales, self.seed),
        )
        if self.task_mixing == "one_task_per_batch" and (
            note := describe_untrained_tasks(queries.task_ids, self.contrastive_batch_size)
        ):
            rank_zero_info(note)

    def set_up_training_queries(self, share: float = 1.0) -> None:
        """Read training queries, each once, and their pool, as the evaluation set `train`.

        Args:
            share: Of all, 0 .. 1, those first that the fit holds out.

        Raises:
            ValueError: There is none.
        """
        self.evaluation_sets["train"] = self.training_records.read_share(share)

    def build_train_sampler(self, first_batch: int = 0) -> TaskBatchSampler:
        """Return what chooses this rank's part of an epoch's batches, from the first that is left.

        Raises:
            ValueError: No batch can be filled, or another option of the sampler does not fit.
        """
        return TaskBatchSampler(
            self.train_dataset.queries.task_ids,
            self.contrastive_batch_size,
            self.task_mixing,
            self.seed,
            get_rank(),
            get_world_size(),
            self.task_weights,
            self.mixing_temperature,
            first_batch,
        )

    def train_dataloader(self) -> TrainLoader:
        """Return the training batches of the trainer's epoch, from where its progress stands."""
        return TrainLoader(self._load_rest_of_epoch, len(self.build_train_sampler()))

    def _load_rest_of_epoch(self) -> DataLoader[TrainBatch]:
        is_training = self.trainer is not None and self.trainer.training
        sampler = self.build_train_sampler(
            self.trainer.fit_loop.batch_idx + 1 if is_training else 0  # type: ignore[union-attr]
        )
        sampler.set_epoch(self.trainer.current_epoch if is_training else 0)  # type: ignore[union-attr]
        device = self.trainer.strategy.root_device if is_training else None  # type: ignore[union-attr]
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=device is not None and device.type == "cuda",
            multiprocessing_context=get_worker_context(self.num_workers),
            worker_init_fn=follow_parent,
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave sequences in host memory: they are moved chunk by chunk."""
        if isinstance(batch, (QueryBatch, TrainBatch)):
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
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=batches,
            num_workers=self.num_workers,
            multiprocessing_context=get_worker_context(self.num_workers),
            worker_init_fn=follow_parent,
        )
