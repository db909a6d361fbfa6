"""Embeds `validate`, `test` and `predict` into a store, ranks the pools and logs the results."""

from __future__ import annotations

import functools
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import OmegaConf

from tracelib.callbacks.embedding_session import EmbeddingSession, build_keys
from tracelib.callbacks.evaluation_report import (
    describe_evaluation,
    write_evaluation,
    write_rationales,
)
from tracelib.callbacks.stored_evaluation import CHUNK_SIZE, Evaluation, evaluate_session
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.distributed import gather_rows, wait_for_ranks
from tracelib.module import RetrievalModule
from tracelib.retrieval.faiss_search import FaissSearch
from tracelib.retrieval.runs import ResultRow
from tracelib.retrieval.search import TopKSearch
from tracelib.retrieval.store import EmbeddingType
from tracelib.types import QueryBatch


class RetrievalEvaluation(Callback):
    """Embeds into a store; ranks local pools and union pool; logs recall, think rates, speed.

    `validate`, `test` and `predict` keep their store: interrupted, they go on where they were;
    repeated, they embed one batch a side and store none. A `fit` validates in a store beside its
    logs that it throws away. `test` writes
    its numbers to `<log_dir>/evaluation/<gate>`, `predict` its rationales to
    `<log_dir>/rationales.jsonl`. Other callbacks find the numbers in `latest`, which is set before
    their own epoch end if they are listed after this.

    Args:
        store_dir: Folder of the stores, which all nodes share; null is `embeddings` in
            `trainer.default_root_dir`.
        embedding_type: Type of stored embeddings, which are unit vectors; `float16` takes half the
            disk and moves cosines by less than 0.001.
        search_chunk_size: Candidates scored at once; bounds memory, never changes the result.
        search_backend: `exact` streams, and its ranking depends on nothing but the embeddings;
            `faiss` (extra `faiss`) holds each rank's share of a pool in memory and orders near ties
            its own way.

    Raises:
        ValueError: `search_chunk_size` is less than 1.
    """

    def __init__(
        self,
        store_dir: Path | None = None,
        embedding_type: EmbeddingType = "float32",
        search_chunk_size: int = CHUNK_SIZE,
        search_backend: Literal["exact", "faiss"] = "exact",
    ) -> None:
        if search_chunk_size < 1:
            raise ValueError(
                f"RetrievalEvaluation: search_chunk_size is {search_chunk_size}, must be >= 1"
            )
        self.store_dir, self.embedding_type = store_dir, embedding_type
        self.search_chunk_size, self.search_backend = search_chunk_size, search_backend
        self.latest: Evaluation | None = None
        self._session: EmbeddingSession | None = None
        self._start = self._seconds = 0.0
        self._num_timed = 0
        self._token = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the loaders draw what the store lacks."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MBEIRDataModule)
        data.plan_evaluation = functools.partial(self._open_session, trainer, pl_module)
        self._token = trainer.strategy.broadcast(uuid.uuid4().hex)

    def _open_session(
        self, trainer: Trainer, pl_module: LightningModule, split: str
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Open the store of a split; return the batches of queries and candidates it lacks."""
        assert isinstance(pl_module, RetrievalModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MBEIRDataModule)
        _refuse_limits(trainer)
        if _is_fitting(trainer):
            fingerprint, folder = self._token, self._get_passing_store(trainer)
            _remove(trainer, folder)
        else:
            data.reader.file_hashes(split)  # they are needed at the end: fail now if at all
            fingerprint = pl_module.compute_fingerprint()
            folder = self.store_dir or Path(trainer.default_root_dir) / "embeddings"
        keys = build_keys(pl_module, data, pl_module.gate, fingerprint, str(trainer.precision))
        self._session = EmbeddingSession(
            data, split, Path(folder), keys, pl_module.encoder.hidden_size, self.embedding_type
        )
        self._seconds, self._num_timed = 0.0, 0
        return self._session.plan_batches()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch of a fit, whose weights were others."""
        if _is_fitting(trainer) and not trainer.sanity_checking:
            self._open_session(trainer, pl_module, "val")

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
        """Store a batch."""
        assert self._session is not None
        if not isinstance(batch, QueryBatch):
            self._session.write_candidates(batch, outputs)
            return
        seconds = time.perf_counter() - self._start
        if self._session.write_queries(batch, outputs):
            self._seconds += seconds
            self._num_timed += len(batch.indices)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank and log."""
        if not trainer.sanity_checking:
            self._evaluate(trainer, pl_module, "val")
        if _is_fitting(trainer):
            _remove(trainer, self._get_passing_store(trainer))

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_predict_batch_start = on_validation_batch_start
    on_predict_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank, log and write the results."""
        self._evaluate(trainer, pl_module, "test")
        assert isinstance(pl_module, RetrievalModule)
        evaluation, log_dir = get_latest_evaluation(trainer), _get_log_dir(trainer)
        if trainer.is_global_zero:
            folder = log_dir / "evaluation" / pl_module.gate.name
            config = describe_evaluation(
                trainer.datamodule,  # type: ignore[attr-defined]
                "test",
                _read_config(log_dir),
                str(pl_module.encoder.dtype),
            )
            write_evaluation(folder, evaluation, config)
            rank_zero_info(f"results, tables and run files: {folder}")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the store, and write the rationales where people can read them."""
        assert self._session is not None
        self._session.finish()
        path = _get_log_dir(trainer) / "rationales.jsonl"
        if trainer.is_global_zero:
            thoughts = self._session.read_thoughts(None)
            write_rationales(path, self._session, thoughts, trainer.datamodule)  # type: ignore[attr-defined]
            rank_zero_info(f"embeddings and rationales: {self._session.store_dir}, {path}")

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        assert isinstance(pl_module, RetrievalModule)
        assert self._session is not None
        seconds = self._sum_seconds(len(self._session.found.queries))
        evaluation = evaluate_session(
            self._session,
            "run",
            pl_module.gate.name,
            seconds,
            pl_module.device,
            self.search_chunk_size,
            FaissSearch if self.search_backend == "faiss" else TopKSearch,
        )
        self.latest, rows, thoughts = evaluation, evaluation.rows, evaluation.thoughts
        # All ranks have the same numbers; their mean is only asked for to say so to Lightning.
        pl_module.log_dict(summarize(split, rows), sync_dist=True)
        pl_module.log(
            f"{split}/forced_emb_token_rate", thoughts.is_forced.float().mean(), sync_dist=True
        )

    def _get_passing_store(self, trainer: Trainer) -> Path:
        """Return the store of a fit's validation, which no other fit has."""
        return _get_log_dir(trainer) / f"val_embeddings-{self._token[:12]}"

    def _sum_seconds(self, num_queries: int) -> float | None:
        """Return the seconds of the slowest rank, or None when some were in the store before."""
        timed: list[tuple[int, float]] = gather_rows([(self._num_timed, self._seconds)])
        if sum(num for num, _ in timed) < num_queries:
            return None
        return max(seconds for _, seconds in timed)


def remove_passing_stores(run: Path) -> None:
    """Remove what a killed fit left of the validation that it was in."""
    for folder in run.glob("val_embeddings-*"):
        shutil.rmtree(folder)


def _is_fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit"


def _get_log_dir(trainer: Trainer) -> Path:
    """Return where the logs are; every rank must ask, since rank zero tells the others."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def _read_config(log_dir: Path) -> dict[str, Any]:
    """Return the recipe that Lightning saved beside the logs, `{}` outside the command line."""
    path = log_dir / "config.yaml"
    config: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    return dict(config)


def _refuse_limits(trainer: Trainer) -> None:
    """Raise ValueError when Lightning is told to skip batches: a part of a pool ranks nothing."""
    limits: dict[str, Any] = {"fast_dev_run": trainer.fast_dev_run or 1.0}  # type: ignore[attr-defined]
    for stage in ("val", "test", "predict"):
        limits[f"limit_{stage}_batches"] = getattr(trainer, f"limit_{stage}_batches")
    for name, value in limits.items():
        # 1.0 is all batches, but 1 is one of them
        if value != 0 and not (isinstance(value, float) and value == 1):
            raise ValueError(
                f"trainer.{name} is {value}, but whole pools have to be embedded: leave it out, "
                "and set data.root to a smaller benchmark instead (scenes --num_test 64)"
            )


def _remove(trainer: Trainer, folder: Path) -> None:
    """Remove a folder that all ranks are done with."""
    wait_for_ranks()
    if trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)
    wait_for_ranks()


def summarize(split: str, rows: list[ResultRow]) -> Mapping[str, float]:
    """Return the metrics to log: recall per pool and column, headline means, think rates, speed."""
    metrics: dict[str, float] = {}
    for row in rows:
        if row.metric == "headline":
            if row.column == row.subset == "all":
                metrics[f"{split}/{row.pool}/mean_recall"] = row.value
        elif row.metric.startswith("recall@") and row.subset == "all":
            column = "all_columns" if row.column == "all" else row.column
            metrics[f"{split}/{row.pool}/{column}/{row.metric}"] = row.value
        elif row.metric in ("recall@1", "recall@5") and row.column == "all":
            metrics[f"{split}/{row.pool}/{row.subset}/{row.metric}"] = row.value
        elif row.metric == "think_rate" and (row.column == "all" or row.subset == "all"):
            name = row.subset if row.column == "all" else row.column
            metrics[f"{split}/think_rate/{name}"] = row.value
        elif row.column == row.subset == "all" and row.metric in _LOGGED:
            name = row.metric if row.metric in _OF_QUERIES else f"{row.pool}/{row.metric}"
            metrics[f"{split}/{name}"] = row.value
    return metrics


_OF_QUERIES = ("tokens_per_query", "queries_per_second")
_LOGGED = (*_OF_QUERIES, "recall_set@5", "map@5", "mrr")


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
