"""What queries, qrels, rationales and pools say of each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tracelib.data.check.entries import CANDIDATE_MODALITIES
from tracelib.data.check.findings import Finding, format_count, make_note
from tracelib.data.check.id_index import IdIndex, Ints
from tracelib.data.check.line_table import LineTable
from tracelib.data.check.sources import Source
from tracelib.data.check.tree import Tree, gather_ids
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    TASK_MODALITIES,
    decode_id,
)

_MIX = np.uint64(0x9E3779B97F4A7C15)
_MODALITY_OF_TASK = np.full(max(TASK_MODALITIES) + 2, -1, dtype=np.int8)  # the last for task -1
for _task, (_, _modality) in TASK_MODALITIES.items():
    _MODALITY_OF_TASK[_task] = CANDIDATE_MODALITIES.index(_modality)


def check_qrels(tree: Tree) -> Iterator[Finding]:
    """Yield qrels of unknown queries or of another task, and queries without qrels."""
    for source, table in tree.select("qrels"):
        found = tree.find("query", source.stem, source.split)
        if found is None:
            message = "not used: there is no query file of this name"
            yield make_note("qrels", source.name, None, message)
        else:
            yield from _compare_with_queries(source, table, *found)
            yield from _compare_positives(source, table, *found)


def _compare_with_queries(
    source: Source, table: LineTable, query_source: Source, queries: LineTable
) -> Iterator[Finding]:
    places = IdIndex(queries.ids).find(table.ids)
    for place in np.flatnonzero(~table.is_broken & (places < 0)).tolist():
        key = decode_id(int(table.ids[place]), MAX_QUERY_NUMBER)
        message = f"query {key!r} is not in {query_source.name}"
        yield Finding("qrels", source.name, place + 1, message)
    tasks = queries.task_ids[places] if len(queries) else places
    differs = (places >= 0) & (table.task_ids >= 0) & (tasks >= 0) & (tasks != table.task_ids)
    for place in np.flatnonzero(differs).tolist():
        key = decode_id(int(table.ids[place]), MAX_QUERY_NUMBER)
        message = (
            f"task {table.task_ids[place]}, but query {key!r} is of task {tasks[place]} "
            f"({query_source.name}:{places[place] + 1})"
        )
        yield Finding("qrels", source.name, place + 1, message)
    covered = IdIndex(table.ids[(table.num_positives > 0) | table.is_broken])
    without = ~queries.is_broken & (covered.find(queries.ids) < 0)
    for place in np.flatnonzero(without).tolist():
        key = decode_id(int(queries.ids[place]), MAX_QUERY_NUMBER)
        message = f"query {key!r} has no positive in {source.name}"
        yield Finding("qrels", query_source.name, place + 1, message)


def _compare_positives(
    source: Source, table: LineTable, query_source: Source, queries: LineTable
) -> Iterator[Finding]:
    """Note the queries whose pos_cand_list is not what the qrels say."""
    listed_places, judged_places = queries.positive_places(), table.positive_places()
    listed = _mix_pairs(queries.ids[listed_places], queries.positives)
    judged = _mix_pairs(table.ids[judged_places], table.positives)
    differing = np.concatenate(
        [
            queries.ids[listed_places[~np.isin(listed, judged)]],
            table.ids[judged_places[~np.isin(judged, listed)]],
        ]
    )
    places = np.unique(IdIndex(queries.ids).find(differing))
    places = places[places >= 0]
    places = places[~queries.is_broken[places]]
    if len(places):
        number = f"{len(places):,} {'query' if len(places) == 1 else 'queries'}"
        message = f"pos_cand_list of {number} differs from {source.name}, which rule"
        yield make_note("qrels", query_source.name, int(places[0]) + 1, message)


def _mix_pairs(queries: Ints, candidates: Ints) -> NDArray[np.uint64]:
    """Return one number for each pair; that two pairs share one is as good as impossible."""
    mixed: NDArray[np.uint64] = queries.astype(np.uint64) * _MIX + candidates.astype(np.uint64)
    return mixed


def check_positives(tree: Tree) -> Iterator[Finding]:
    """Yield positives that are in no pool, and train candidates that the train pool lacks.

    Positives in another column's pool are M-BEIR's own and no fault; those that may be in a pool
    that is not in the tree are noted.
    """
    pools = {split: index_pools(tree, split) for split in ("train", "val", "test")}
    for source, table in tree.select("qrels"):
        split = source.split or ""
        if split != "train" and tree.find_pool(source.stem, split) is not None:
            yield from _find_absent_positives(tree, source, table, pools[split])
    for source, table in tree.select("query"):
        split = source.split or ""
        if not len(pools[split]) or not (split == "train" or source.is_union):
            continue
        yield from _find_absent_positives(tree, source, table, pools[split])
        if split == "train":
            absent = np.flatnonzero(pools[split].find(table.negatives) < 0)
            places, negatives = table.negative_places()[absent], table.negatives[absent]
            yield from _describe_absent(source, table, places, negatives, "negative")


def index_pools(tree: Tree, split: str) -> IdIndex:
    """Return the ids of all pools of a split, local ones and the union."""
    union = tree.find("union_pool", "union", split)
    local = [] if split == "train" else tree.local_pools(split)
    return IdIndex(gather_ids([*local, *([union] if union else [])]))


def _find_absent_positives(
    tree: Tree, source: Source, table: LineTable, pools: IdIndex
) -> Iterator[Finding]:
    absent = np.flatnonzero(pools.find(table.positives) < 0)
    places, positives = table.positive_places()[absent], table.positives[absent]
    is_excused = np.zeros(len(absent), dtype=bool)
    union = tree.find("union_pool", "union", source.split)
    if source.split is not None and (union is None or not len(union[1])):
        modalities = _MODALITY_OF_TASK[table.task_ids[places]]
        is_excused = tree.may_be_elsewhere(source.split, positives, modalities)
    if excused := places[is_excused].tolist():
        number = format_count(len(excused), "positive")
        message = f"{number} may be in pools that are not here; this line has the first"
        yield make_note("positive", source.name, excused[0] + 1, message)
    kept = ~is_excused
    yield from _describe_absent(source, table, places[kept], positives[kept], "positive")


def _describe_absent(
    source: Source, table: LineTable, places: Ints, candidates: Ints, role: str
) -> Iterator[Finding]:
    where = "the train pool" if source.split == "train" else f"any pool of {source.split}"
    for place, candidate_id in zip(places.tolist(), candidates.tolist(), strict=True):
        candidate = decode_id(candidate_id, MAX_CANDIDATE_NUMBER)
        query = decode_id(int(table.ids[place]), MAX_QUERY_NUMBER)
        message = f"{role} {candidate!r} of query {query!r} is not in {where}"
        yield Finding("positive", source.name, place + 1, message)


def check_rationales(tree: Tree) -> Iterator[Finding]:
    """Yield rationales of unknown queries and of another task."""
    for source, table in tree.select("rationales"):
        files = [
            (query_source, queries)
            for query_source, queries in tree.select("query")
            if (query_source.dataset, query_source.split) == (source.stem, source.split)
        ]
        if not files:
            message = f"no query file of {source.stem!r} in split {source.split!r}"
            yield Finding("rationale", source.name, None, message)
            continue
        places = IdIndex(gather_ids(files)).find(table.ids)
        task_ids = np.concatenate([queries.task_ids for _, queries in files])
        tasks = task_ids[places] if len(task_ids) else places
        differs = (places >= 0) & (table.task_ids >= 0) & (tasks >= 0) & (tasks != table.task_ids)
        for place in np.flatnonzero((~table.is_broken & (places < 0)) | differs).tolist():
            key = decode_id(int(table.ids[place]), MAX_QUERY_NUMBER)
            message = (
                f"task_id {table.task_ids[place]}, but query {key!r} is of task {tasks[place]}"
                if differs[place]
                else f"qid {key!r} is no query of {source.stem!r} in split {source.split!r}"
            )
            yield Finding("rationale", source.name, place + 1, message)
