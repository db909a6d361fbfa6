"""Collects embeddings in `validate` and `test`, ranks the pools and logs the results."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.datasets import EvaluationSet
from tracelib.data.mbeir import headline_k
from tracelib.distributed import gather_rows
from tracelib.models.engine import EngineOutput
from tracelib.module import RetrievalModule
from tracelib.retrieval.evaluation import (
    QueryFacts,
    Ranking,
    Thoughts,
    describe_shallow_pools,
    rank_pools,
    tabulate,
)
from tracelib.retrieval.runs import ResultRow
from tracelib.types import CandidateBatch, QueryBatch


def build_facts(evaluation_set: EvaluationSet) -> QueryFacts:
    """Return what is known of a split's queries, with positives as places in the union pool.

    Raises:
        ValueError: A candidate is in two pools.
    """
    places = {c.candidate_id: i for i, c in enumerate(evaluation_set.candidates)}
    if len(places) < len(evaluation_set.candidates):
        ids = Counter(c.candidate_id for c in evaluation_set.candidates)
        raise ValueError(
            f"candidate {ids.most_common(1)[0][0]!r} is in two pools (cand_pool/local)"
        )
    return QueryFacts(
        columns=[q.column for q in evaluation_set.queries],
        positives=[
            [places[i] for i in q.positive_ids if i in places] for q in evaluation_set.queries
        ],
        difficulty=torch.tensor(
            [-1 if q.difficulty is None else q.difficulty for q in evaluation_set.queries]
        ),
    )


class EmbeddingCollector:
    """Puts batches of embeddings, from any rank and in any order, back in their place."""

    def __init__(self) -> None:
        self.queries: list[tuple[int, Tensor, bool, float, list[int], bool]] = []
        self.candidates: list[tuple[int, Tensor]] = []
        self.seconds = 0.0

    def add_queries(self, batch: QueryBatch, output: EngineOutput) -> None:
        """Keep a batch of queries."""
        self.queries += zip(
            batch.indices.tolist(),
            map(torch.clone, output.embeddings.cpu()),  # a view would keep its whole batch
            output.thinks.tolist(),
            output.think_probability.tolist(),
            output.rationale_token_ids,
            output.is_forced.tolist(),
            strict=True,
        )

    def add_candidates(self, batch: CandidateBatch, embeddings: Tensor) -> None:
        """Keep a batch of candidates."""
        self.candidates += zip(
            batch.indices.tolist(), map(torch.clone, embeddings.cpu()), strict=True
        )

    def collect(self, num_queries: int, num_candidates: int) -> tuple[Thoughts, Tensor]:
        """Return all queries and the candidates' embeddings `[C, D]` of all ranks.

        Raises:
            ValueError: Records are missing or doubled.
        """
        queries = sorted(gather_rows(self.queries), key=lambda row: row[0])
        candidates = sorted(gather_rows(self.candidates), key=lambda row: row[0])
        for side, rows, expected in (
            ("queries", queries, num_queries),
            ("candidates", candidates, num_candidates),
        ):
            if [row[0] for row in rows] != list(range(expected)):
                raise ValueError(
                    f"{len(rows)} {side} were embedded, expected each of {expected} once"
                )
        _, embeddings, thinks, probability, rationales, forced = zip(*queries, strict=True)
        thoughts = Thoughts(
            torch.stack(embeddings),
            torch.tensor(thinks),
            torch.tensor(probability),
            rationales,
            torch.tensor(forced),
            max(gather_rows([self.seconds])),
        )
        return thoughts, torch.stack([row[1] for row in candidates])


@dataclass(frozen=True)
class Evaluation:
    """The latest evaluation of a split.

    Args:
        evaluation_set: Queries, candidates and pools.
        facts: What was known of the queries.
        thoughts: How they were embedded.
        rankings: Under `local` and `union`.
        rows: The numbers.
    """

    evaluation_set: EvaluationSet
    facts: QueryFacts
    thoughts: Thoughts
    rankings: dict[str, Ranking]
    rows: list[ResultRow]


class RetrievalEvaluation(Callback):
    """Ranks each column's local pool and the union pool; logs recall, think rates, tokens, speed.

    Other callbacks find the numbers in `latest`, which is set before their own epoch end if they
    are listed after this.
    """

    def __init__(self) -> None:
        self.latest: Evaluation | None = None
        self.collector = EmbeddingCollector()
        self._start = 0.0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch."""
        self.collector = EmbeddingCollector()

    def on_validation_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Keep a batch."""
        if isinstance(batch, QueryBatch):
            self.collector.seconds += time.perf_counter() - self._start
            self.collector.add_queries(batch, outputs)
        else:
            self.collector.add_candidates(batch, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank and log."""
        if not trainer.sanity_checking:
            self._evaluate(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank and log."""
        self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        assert isinstance(pl_module, RetrievalModule)
        assert isinstance(trainer.datamodule, MBEIRDataModule)  # type: ignore[attr-defined]
        found = trainer.datamodule.evaluation_sets[split]  # type: ignore[attr-defined]
        if shallow := describe_shallow_pools(found.pools):
            rank_zero_info(shallow)
        facts = build_facts(found)
        thoughts, candidates = self.collector.collect(len(found.queries), len(found.candidates))
        rankings = rank_pools(thoughts.embeddings, candidates, facts, found.pools)
        rows = tabulate("run", pl_module.gate.name, facts, thoughts, rankings)
        self.latest = Evaluation(found, facts, thoughts, rankings, rows)
        # All ranks have the same numbers; their mean is only asked for to say so to Lightning.
        pl_module.log_dict(summarize(split, rows), sync_dist=True)
        pl_module.log(
            f"{split}/forced_emb_token_rate", thoughts.is_forced.float().mean(), sync_dist=True
        )


def summarize(split: str, rows: list[ResultRow]) -> dict[str, float]:
    """Return the metrics to log: recall per pool and column, headline means, think rates, speed."""
    metrics: dict[str, float] = {}
    headline: dict[str, list[float]] = {}
    for row in rows:
        if row.metric.startswith("recall@") and row.subset == "all":
            column = "all_columns" if row.column == "all" else row.column
            metrics[f"{split}/{row.pool}/{column}/{row.metric}"] = row.value
            if row.column != "all" and row.metric == f"recall@{headline_k(row.column)}":
                headline.setdefault(row.pool, []).append(row.value)
        elif row.metric in ("recall@1", "recall@5") and row.column == "all":
            metrics[f"{split}/{row.pool}/{row.subset}/{row.metric}"] = row.value
        elif row.metric == "think_rate" and (row.column == "all" or row.subset == "all"):
            name = row.subset if row.column == "all" else row.column
            metrics[f"{split}/think_rate/{name}"] = row.value
        elif row.column == row.subset == "all":
            metrics[f"{split}/{row.metric}"] = row.value
    for pool, values in headline.items():
        metrics[f"{split}/{pool}/mean_recall"] = sum(values) / len(values)
    return metrics


def get_latest_evaluation(trainer: Trainer) -> Evaluation:
    """Return the evaluation that just ended.

    Raises:
        ValueError: No `RetrievalEvaluation` stands before the asking callback in
            `trainer.callbacks`.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RetrievalEvaluation) and callback.latest is not None:
            return callback.latest
    raise ValueError(
        "trainer.callbacks needs tracelib.callbacks.RetrievalEvaluation before this callback"
    )
