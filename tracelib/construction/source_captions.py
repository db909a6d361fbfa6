"""Captions of the pictures that edits start from, as far as a data tree has them.

A picture has a caption where another query shows the same one and looks for its text (task 3).

Shapes: K queries of task 3, N queries asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tracelib.data.query_table import QueryTable
from tracelib.data.records import MAX_CANDIDATE_NUMBER, encode_id
from tracelib.data.tables import CandidateTable, Ints
from tracelib.types import Query

_CAPTION_TASK = 3
_EDIT_TASKS = (6, 7, 8)
_CHUNK = 4096


class SourceCaptions:
    """Finds the captions of queries' pictures.

    Args:
        table: Queries, among them those whose targets are captions.
        pool: Pool of their targets.
    """

    def __init__(self, table: QueryTable, pool: CandidateTable) -> None:
        self._table, self._pool = table, pool

    def find(self, queries: Sequence[Query]) -> list[str | None]:
        """Return the caption of each query's picture `[N]`, None where there is none to be had."""
        twins = {
            spot: twin
            for spot, query in enumerate(queries)
            if query.task_id in _EDIT_TASKS and (twin := self._find_twin(query.image_path)) >= 0
        }
        captions: list[str | None] = [None] * len(queries)
        targets: dict[int, int] = {}
        for spot, twin_query in zip(twins, self._table.take(list(twins.values())), strict=True):
            # Another path may have the same digest.
            if twin_query.image_path == queries[spot].image_path:
                ids = [encode_id(name, MAX_CANDIDATE_NUMBER) for name in twin_query.positive_ids]
                found = self._pool.find(np.array(ids))
                if (inside := found[found >= 0]).size:
                    targets[spot] = int(inside[0])
        for spot, target in zip(targets, self._pool.take(list(targets.values())), strict=True):
            captions[spot] = target.text
        return captions

    def _find_twin(self, image_path: str | None) -> int:
        """Return the place of a query of task 3 that shows a picture, -1 if there is none."""
        hashes, places = self._by_picture
        number = _hash_path(image_path or "")
        spot = int(hashes.searchsorted(number))
        return int(places[spot]) if spot < len(hashes) and hashes[spot] == number else -1

    @cached_property
    def _by_picture(self) -> tuple[NDArray[np.uint64], Ints]:
        """Digests `[K]` of the pictures of task 3, rising, and the places of their queries."""
        places = np.flatnonzero(self._table.task_ids == _CAPTION_TASK)
        hashes = np.empty(len(places), np.uint64)
        for start in range(0, len(places), _CHUNK):
            chunk = self._table.take(places[start : start + _CHUNK])
            hashes[start : start + len(chunk)] = [_hash_path(q.image_path or "") for q in chunk]
        order = hashes.argsort(kind="stable")
        return hashes[order], places[order]


def _hash_path(path: str) -> np.uint64:
    digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
    number: np.uint64 = np.uint64(int.from_bytes(digest, "little"))
    return number
