"""What a split is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tracelib.data.arrow import ArrowTable
from tracelib.data.jsonl import DataError
from tracelib.data.query_table import QueryTable
from tracelib.data.records import MAX_CANDIDATE_NUMBER, decode_id
from tracelib.data.tables import CandidateTable, Ints


@dataclass(frozen=True)
class EvaluationSet:
    """What one split is evaluated on.

    Args:
        queries: All queries, column by column.
        candidates: The union pool: the local pools one after the other.
        query_spans: Places in `queries` of each column's queries.
        pools: Places in `candidates` of each column's local pool.
    """

    queries: QueryTable
    candidates: CandidateTable
    query_spans: dict[str, range]
    pools: dict[str, range]

    @cached_property
    def first_places(self) -> Ints:
        """Place of the first candidate of the same pool with the same content, per candidate."""
        return self.candidates.find_first_places(self.pools)


def check_disjoint(pools: Sequence[ArrowTable]) -> None:
    """Check that no candidate is in two pools.

    Raises:
        DataError: One is; the message names both lines.
    """
    # Joined runs that are sorted already: a stable sort merges them.
    ids = np.sort(np.concatenate([pool.index.sorted_ids for pool in pools]), kind="stable")
    for again in ids[1:][ids[1:] == ids[:-1]][:1].tolist():
        places = [
            f"{pool.source}:{row + 1}"
            for pool in pools
            for row in pool.index.find(np.array([again])).tolist()
            if row >= 0
        ]
        raise DataError(
            f"{places[1]}: did {decode_id(again, MAX_CANDIDATE_NUMBER)!r} is also in {places[0]}; "
            "a candidate belongs to one pool"
        )
