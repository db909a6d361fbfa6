"""Which training queries a fit leaves out, so that its model can be judged on them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tracelib.data.evaluation_set import EvaluationSet
from tracelib.data.query_table import QueryTable
from tracelib.data.tables import CandidateTable

_HASH_VALUES = 2**64


def mark_held_out(query_ids: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Return `[Q]` whether each query is held out; see `mark_share`.

    >>> mark_held_out(np.array([5, 6, 7, 5]), 0.5, seed=0).tolist()
    [False, False, True, False]
    """
    return mark_share("held out", query_ids, share, seed)


def mark_share(
    purpose: str, query_ids: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """Return `[Q]` whether each query is chosen: a function of its id, the share and the seed.

    A larger share chooses the same queries and more.

    Args:
        purpose: What they are chosen for; other purposes choose other queries.
        query_ids: `[Q]` integer ids.
        share: Expected share of the queries, 0 .. 1, which is all.
        seed: Seed of the choice.
    """
    limit = int(share * _HASH_VALUES)
    numbers = (_hash_query(f"{purpose} {seed} {number}") for number in query_ids.tolist())
    return np.array([number < limit for number in numbers], dtype=bool)


def build_held_out_set(
    queries: QueryTable, pool: CandidateTable, share: float, seed: int
) -> EvaluationSet:
    """Return the queries that are held out, each once, with one column and pool called `train`.

    Args:
        queries: All training queries; up-sampled ones may come several times.
        pool: Their pool.
        share: As for `mark_held_out`.
        seed: As for `mark_held_out`.

    Raises:
        ValueError: No query is held out.
    """
    is_kept = np.zeros(len(queries), dtype=bool)
    is_kept[np.unique(queries.ids, return_index=True)[1]] = True
    found = queries.select(is_kept & mark_held_out(queries.ids, share, seed))
    if not len(found):
        raise ValueError(
            f"none of {len(queries)} training queries is in a share of {share} (data.held_out of "
            "the fit, or --share): take a larger one, such as 0.2"
        )
    return EvaluationSet(found, pool, {"train": range(len(found))}, {"train": range(len(pool))})


def _hash_query(name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
