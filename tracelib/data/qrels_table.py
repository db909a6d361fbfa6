"""The positives of a column's queries, over a memory-mapped file.

Shapes: N queries asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from tracelib.data.arrow import ArrowTable, gather_slices
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    decode_id,
    decode_ids,
    encode_id,
)
from tracelib.data.tables import Ints


class QrelsTable(Mapping[str, tuple[str, ...]]):
    """The positives of each query of a column, sorted by query.

    Args:
        table: Table of the qrels file.
    """

    def __init__(self, table: ArrowTable) -> None:
        self.table = table

    def __reduce__(self) -> tuple[Any, ...]:
        return QrelsTable, (self.table,)

    @cached_property
    def query_ids(self) -> Ints:
        """Integer id of each query, rising."""
        return np.unique(self.table.index.sorted_ids)

    @cached_property
    def candidate_ids(self) -> Ints:
        """Integer ids of all positives, query after query."""
        return self.table.read_numbers("candidate_id")

    def find_spans(self, query_ids: Ints) -> tuple[Ints, Ints]:
        """Return where `candidate_ids` begin and end for each query `[N]`; empty without any."""
        return self.table.index.find_spans(query_ids)

    def read_positives(self, query_ids: Ints) -> list[tuple[str, ...]]:
        """Return the positives of each query `[N]`."""
        starts, stops = self.find_spans(query_ids)
        numbers = gather_slices(self.candidate_ids, starts, stops).tolist()
        edges = np.cumsum(np.append(0, stops - starts)).tolist()
        return [
            decode_ids(numbers[start:stop], MAX_CANDIDATE_NUMBER) for start, stop in pairwise(edges)
        ]

    def __getitem__(self, query_id: str) -> tuple[str, ...]:
        (positives,) = self.read_positives(np.array([encode_id(query_id, MAX_QUERY_NUMBER)]))
        if not positives:
            raise KeyError(query_id)
        return positives

    def __iter__(self) -> Iterator[str]:
        return (decode_id(number, MAX_QUERY_NUMBER) for number in self.query_ids.tolist())

    def __len__(self) -> int:
        return len(self.query_ids)
