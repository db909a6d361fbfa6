"""Training pairs of one MMEB subset, built from mapped rows when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from tracelib.data.mmeb.records import SideCounts, build_candidate, build_content, build_query
from tracelib.data.mmeb.rewrites import Rewrite
from tracelib.types import Candidate, Query, Side


@dataclass(frozen=True)
class TrainPair:
    """A query, its positive and its hard negatives (one or none)."""

    query: Query
    positive: Candidate
    negatives: tuple[Candidate, ...]


class TrainPairs:
    """Training pairs of one subset, built from mapped rows when asked for.

    Args:
        subset: Name of the subset.
        rows: Its rows.
        rewrites: The rewrite of each side.
        numbers: `[rows, 2]` numbers of positive and negative, equal for equal candidates; 0 for no
            negative.
        counts: What was met, per side.
    """

    def __init__(
        self,
        subset: str,
        rows: datasets.Dataset,
        rewrites: dict[Side, Rewrite],
        numbers: NDArray[np.int32],
        counts: dict[Side, SideCounts],
    ) -> None:
        self.subset, self.rows, self.rewrites = subset, rows, rewrites
        self.numbers, self.counts = numbers, counts

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> TrainPair:
        row = self.rows[index]
        query = build_content(row["qry"] or "", row["qry_image_path"] or "", self.rewrites["query"])
        positive, *negatives = [
            build_candidate(
                self.subset,
                int(number),
                build_content(text or "", image_path or "", self.rewrites["candidate"]),
            )
            for (text, image_path), number in zip(
                list_candidates(row), self.numbers[index], strict=False
            )
        ]
        # A positive that is listed as its own negative is none.
        negatives = [n for n in negatives if n.candidate_id != positive.candidate_id]
        number = index % len(self) + 1
        return TrainPair(
            build_query(self.subset, number, query, positive, negatives),
            positive,
            tuple(negatives),
        )


def list_candidates(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return text and picture of a training row's positive, then of its negative if it has one."""
    negative = (row.get("neg_text"), row.get("neg_image_path"))
    positive = (row["pos_text"], row["pos_image_path"])
    return [positive, negative] if any(negative) else [positive]
