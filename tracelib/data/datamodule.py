"""The LightningDataModule of any tree in M-BEIR's layout."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import lightning
from torch.utils.data import DataLoader, Dataset

from tracelib.data.collator import ChatProcessor
from tracelib.data.datasets import (
    CandidateDataset,
    EvaluationSet,
    QueryDataset,
    RationalePolicy,
    RecordRenderer,
    TrainDataset,
)
from tracelib.data.instructions import PromptPolicy
from tracelib.data.mbeir import MBEIRReader, check_positives
from tracelib.data.sampler import TaskBatchSampler, TaskMixing
from tracelib.distributed import get_rank, get_world_size
from tracelib.prompts import Template
from tracelib.types import Candidate, CandidateBatch, Query, QueryBatch, TrainBatch

_Batch = TypeVar("_Batch")


class MBEIRDataModule(lightning.LightningDataModule):
    """Training pairs, and queries with their local and union pools for evaluation.

    Args:
        root: Data root: a folder in M-BEIR's layout.
        backbone: Folder or hub name of the tokenizer and image processor; linked to the model's.
        emb_token: The embedding token; linked to the model's.
        batch_size: Training queries per device and step. Accumulating gradients does not make it
            larger: in-batch negatives come from one step.
        eval_batch_size: Queries or candidates per device and step of evaluation.
        rationale: What is written before the embedding token in training: `none`, `teacher`
            (target-blind) or `oracle`.
        num_hard_negatives: Hard negatives per training query.
        task_mixing: Whether a training batch is drawn from one task or from all.
        query_template: Words of the query side.
        candidate_template: Words of the candidate side.
        prompt_policy: Which of a row's instructions evaluation takes; training draws one per query.
        max_text_tokens: Longest text of a record, in tokens.
        min_pixels: Smallest picture after resizing; null keeps the backbone's.
        max_pixels: Largest picture after resizing; null keeps the backbone's.
        num_workers: Worker processes per loader.
        seed: Seed of batches and training prompts.

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
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise ValueError(f"{name} is {size}, must be at least 1 (data.{name})")
        if num_hard_negatives < 0:
            raise ValueError(f"num_hard_negatives is {num_hard_negatives}, must be >= 0 (data)")
        if not Path(root).is_dir():
            raise FileNotFoundError(
                f"data.root {str(root)!r} is no folder (make scenes writes data/scenes)"
            )
        self.root, self.batch_size, self.eval_batch_size = Path(root), batch_size, eval_batch_size
        self.rationale, self.num_hard_negatives = rationale, num_hard_negatives
        self.task_mixing, self.prompt_policy = task_mixing, prompt_policy
        self.num_workers, self.seed = num_workers, seed
        self.reader = MBEIRReader(self.root)
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

    def setup(self, stage: str) -> None:
        """Read the splits a stage needs."""
        if stage == "fit":
            queries = self.reader.read_queries("train", prompt_policy="random", seed=self.seed)
            pool = self.reader.read_union_pool("train")
            check_positives(queries, pool, self.root, self.num_hard_negatives)
            by_id = {candidate.candidate_id: candidate for candidate in pool}
            self.train_dataset = TrainDataset(
                queries, by_id, self.renderer, self.rationale, self.num_hard_negatives
            )
        split = "val" if stage in ("fit", "validate") else "test"
        if split not in self.evaluation_sets:
            self.evaluation_sets[split] = self._read_evaluation_set(split)

    def _read_evaluation_set(self, split: str) -> EvaluationSet:
        queries: list[Query] = []
        candidates: list[Candidate] = []
        pools: dict[str, list[int]] = {}
        for column in self.reader.columns(split):
            queries += self.reader.read_queries(split, column, self.prompt_policy, self.seed)
            pool = self.reader.read_pool(split, column)
            pools[column] = list(range(len(candidates), len(candidates) + len(pool)))
            candidates += pool
        return EvaluationSet(queries, candidates, pools)

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Return the training batches of the trainer's current epoch.

        Workers draw the first batches before Lightning names the epoch to the sampler, so a resumed
        run needs a loader made after its epoch is known.

        Raises:
            ValueError: The trainer does not make loaders anew every epoch.
        """
        tasks = [q.task_id for q in self.train_dataset.queries]
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

    def val_dataloader(self) -> list[DataLoader[QueryBatch] | DataLoader[CandidateBatch]]:
        """Return the val split's queries, and its candidates."""
        return self.build_evaluation_loaders("val")

    def test_dataloader(self) -> list[DataLoader[QueryBatch] | DataLoader[CandidateBatch]]:
        """Return the test split's queries, and its candidates."""
        return self.build_evaluation_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[QueryBatch] | DataLoader[CandidateBatch]]:
        """Return the test split's queries, and its candidates."""
        return self.build_evaluation_loaders("test")

    def build_evaluation_loaders(
        self, split: str
    ) -> list[DataLoader[QueryBatch] | DataLoader[CandidateBatch]]:
        """Return loaders of a split's queries and candidates; each rank gets every W-th batch.

        Batches hold records of similar length, and no record is doubled to even out the ranks.
        """
        found = self.evaluation_sets[split]
        query_lengths = [(q.image_path is not None, len(q.text)) for q in found.queries]
        candidate_lengths = [(c.image_path is not None, len(c.text)) for c in found.candidates]
        return [
            self._build_loader(QueryDataset(found.queries, self.renderer), query_lengths),
            self._build_loader(
                CandidateDataset(found.candidates, self.renderer), candidate_lengths
            ),
        ]

    def _build_loader(
        self, dataset: Dataset[_Batch], lengths: Sequence[tuple[bool, int]]
    ) -> DataLoader[_Batch]:
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        # As many batches on every rank: one without any would leave the others waiting for it.
        num_batches = -(-len(order) // self.eval_batch_size)
        num_batches += -num_batches % get_world_size()
        edges = [len(order) * i // num_batches for i in range(num_batches + 1)]
        batches = [order[start:stop] for start, stop in pairwise(edges) if stop > start]
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=batches[get_rank() :: get_world_size()],
            num_workers=self.num_workers,
        )
