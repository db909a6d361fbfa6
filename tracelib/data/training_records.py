"""What a fit reads: training queries, their pool, and what the router learns of each query."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracelib.data.evaluation_set import EvaluationSet
from tracelib.data.held_out import build_held_out_set, mark_held_out
from tracelib.data.mbeir import DataError, MBEIRReader, check_positives
from tracelib.data.mined_negatives import read_mined_negatives
from tracelib.data.query_table import QueryTable
from tracelib.data.route_labels import RouteTargets, read_route_labels
from tracelib.data.tables import CandidateTable

TrainFile = Literal["separate", "union_up"]


@dataclass(frozen=True)
class TrainingRecords:
    """Reads the train split, and chooses what of it is trained on.

    Args:
        reader: Reads the tree.
        train_file: Whether each data set's own file is read, or the one of all, up-sampled.
        seed: Seed of the prompts and of which queries are held out.
        num_hard_negatives: How many hard negatives of each query have to be in the pool.
        mined_negatives: Folder of hard negatives in place of the rows' own; None takes these.
        cache_dir: Folder for tables; None keeps them beside their files.
        held_out: Share of the queries that are not trained on, 0 .. 1.
        route_labels: File of what the router learns; None for the annotated difficulty.
        route_targets: Which labels of that file.
        only_annotated: Whether queries without a rationale row are left out of training.
    """

    reader: MBEIRReader
    train_file: TrainFile
    seed: int
    num_hard_negatives: int
    mined_negatives: Path | None
    cache_dir: Path | None
    held_out: float
    route_labels: Path | None
    route_targets: RouteTargets
    only_annotated: bool = False

    def read_all(self) -> tuple[QueryTable, CandidateTable]:
        """Return all training queries with their rows' negatives, and their pool."""
        if self.train_file == "union_up":
            queries = self.reader.read_union_up_queries("random", self.seed)
        else:
            queries = self.reader.read_queries("train", None, "random", self.seed)
        pool = self.reader.read_union_pool("train")
        num_used = 0 if self.mined_negatives is not None else self.num_hard_negatives
        check_positives(queries, pool, self.reader.root, num_used)
        return queries, pool

    def read_trained(self) -> tuple[QueryTable, CandidateTable, NDArray[Any] | None]:
        """Return the queries to train on, their pool, and labels `[Q]` where a file gives them.

        Raises:
            DataError: The file has no label for any of the queries, or none has a rationale row
                though only such are wanted.
        """
        queries, pool = self.read_all()
        if self.mined_negatives is not None:
            queries = read_mined_negatives(self.mined_negatives, queries, pool, self.cache_dir)
        labels = None
        if self.route_labels is not None:
            labels = read_route_labels(self.route_labels, queries, self.route_targets)
        if self.held_out or self.only_annotated:
            is_trained = self._mark_trained(queries)
            queries = queries.select(is_trained)
            labels = None if labels is None else labels[is_trained]
        if labels is not None and not (labels >= 0).any():
            raise DataError(
                f"{self.route_labels} has no label for any of the {len(queries)} queries that are "
                f"trained on (data.route_labels); data.held_out is {self.held_out}: at 0 no query "
                "is left out"
            )
        return queries, pool, labels

    def _mark_trained(self, queries: QueryTable) -> NDArray[np.bool_]:
        """Return whether each query is trained on."""
        is_trained = ~mark_held_out(queries.ids, self.held_out, self.seed)
        if not self.only_annotated:
            return is_trained
        if not queries.is_annotated.any():
            raise DataError(
                f"none of the {len(queries)} training queries of {self.reader.root} has a "
                "rationale row (data.only_annotated); check data.rationale_folder"
            )
        marks: NDArray[np.bool_] = is_trained & queries.is_annotated
        return marks

    def read_share(self, share: float) -> EvaluationSet:
        """Return a share of the queries, each once, with their pool: those held out first.

        Raises:
            ValueError: It has no query.
        """
        return build_held_out_set(*self.read_all(), share, self.seed)
