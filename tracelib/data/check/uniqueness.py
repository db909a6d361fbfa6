"""Ids that repeat, and the union pool beside the local pools it joins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tracelib.data.check.findings import Finding, format_count, make_note
from tracelib.data.check.id_index import IdIndex, Ints
from tracelib.data.check.line_table import LineTable
from tracelib.data.check.sources import Source
from tracelib.data.check.tree import Tree, gather_ids, locate
from tracelib.data.records import MAX_CANDIDATE_NUMBER, MAX_QUERY_NUMBER, decode_id

_Files = list[tuple[Source, LineTable]]


def check_uniqueness(tree: Tree) -> Iterator[Finding]:
    """Yield ids that occur twice where they must not, and notes where they may.

    Candidate ids are unique over all local pools, query ids within a file. Up-sampled queries
    repeat.
    """
    yield from _find_repeats(list(tree.select("pool")), "did", MAX_CANDIDATE_NUMBER)
    for source, table in tree.select("union_pool"):
        yield from _find_repeats([(source, table)], "did", MAX_CANDIDATE_NUMBER)
    for source, table in tree.select("query", "rationales"):
        if not (source.is_union and source.split == "train"):
            yield from _find_repeats([(source, table)], "qid", MAX_QUERY_NUMBER)
    yield from _note_shared_query_ids(tree)


def _find_repeats(files: _Files, field: str, limit: int) -> Iterator[Finding]:
    ids = gather_ids(files)
    places, firsts = IdIndex(ids).find_repeats()
    is_broken = np.concatenate([np.empty(0, bool), *(table.is_broken for _, table in files)])
    places, firsts = places[~is_broken[places]], firsts[~is_broken[places]]
    pairs = zip(places.tolist(), locate(files, places), locate(files, firsts), strict=True)
    for place, (name, line), (first_name, first_line) in pairs:
        key = decode_id(int(ids[place]), limit)
        message = f"{field} {key!r} occurs again; it is at {first_name}:{first_line} already"
        yield Finding("id", name, line, message)


def _note_shared_query_ids(tree: Tree) -> Iterator[Finding]:
    """Note query ids that several files of a split, or several splits, use for other queries."""
    by_split: dict[str, Ints] = {}
    for split in ("train", "val", "test"):
        files = [
            file for file in tree.select("query") if file[0].split == split and not file[0].is_union
        ]
        ids = [np.unique(table.ids[table.ids >= 0]) for _, table in files]
        if not ids:
            continue
        by_split[split], counts = np.unique(np.concatenate(ids), return_counts=True)
        if num_shared := int(np.sum(counts > 1)):
            number = format_count(num_shared, "query id")
            message = f"{number} in common to several files of this split"
            yield make_note("id", f"query/{split}", None, message)
    if by_split:
        _, counts = np.unique(np.concatenate(list(by_split.values())), return_counts=True)
        if num_shared := int(np.sum(counts > 1)):
            number = format_count(num_shared, "query id")
            message = (
                f"{number} in common to several splits: a query id is unique within "
                "its split only, so (split, query id) names a query"
            )
            yield make_note("id", "query", None, message)


def check_union_pool(tree: Tree) -> Iterator[Finding]:
    """Yield where the union test pool is not its local pools one after the other.

    Candidates of pools that are not in the tree are noted.
    """
    union = tree.find("union_pool", "union", "test")
    local = tree.local_pools("test")
    if union is None or not local:
        return
    source, table = union
    ids = gather_ids(local)
    places = IdIndex(ids).find(table.ids)
    unknown = ~table.is_broken & (places < 0)
    is_excused = unknown & tree.may_be_elsewhere("test", table.ids, table.modalities)
    if excused := np.flatnonzero(is_excused).tolist():
        number = format_count(len(excused), "candidate")
        message = f"{number} may be in local pools that are not here; this is the first"
        yield make_note("union pool", source.name, excused[0] + 1, message)
    for first, last in _find_runs(unknown & ~is_excused):
        key = decode_id(int(table.ids[first]), MAX_CANDIDATE_NUMBER)
        message = f"candidate {key!r} is in no local pool of test{_count_more(first, last)}"
        yield Finding("union pool", source.name, first + 1, message)
    absent = (ids >= 0) & (IdIndex(table.ids).find(ids) < 0)
    is_broken = np.concatenate([pool.is_broken for _, pool in local])
    for first, last in _find_runs(absent & ~is_broken):
        key = decode_id(int(ids[first]), MAX_CANDIDATE_NUMBER)
        ((name, line),) = locate(local, np.array([first]))
        message = f"candidate {key!r} is not in {source.name}{_count_more(first, last)}"
        yield Finding("union pool", name, line, message)
    yield from _compare_contents(source, table, local, places)
    expected = ids[(ids >= 0) & ~absent]
    found = table.ids[places >= 0]
    if len(expected) == len(found) and not np.array_equal(expected, found):
        message = "the order is not that of the local pools; ties are broken by theirs"
        yield make_note("union pool", source.name, None, message)


def _compare_contents(
    source: Source, table: LineTable, local: _Files, places: Ints
) -> Iterator[Finding]:
    checksums = np.concatenate([table.checksums for _, table in local])
    known = np.flatnonzero(places >= 0)
    ours, theirs = table.checksums[known], checksums[places[known]]
    differing = known[(ours != theirs) & (ours > 0) & (theirs > 0)]
    for place, (name, line) in zip(
        differing.tolist(), locate(local, places[differing]), strict=True
    ):
        key = decode_id(int(table.ids[place]), MAX_CANDIDATE_NUMBER)
        message = f"candidate {key!r} is another one at {name}:{line}"
        yield Finding("union pool", source.name, place + 1, message)


def _find_runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return first and last place of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop) - 1) for start, stop in edges.reshape(-1, 2)]


def _count_more(first: int, last: int) -> str:
    return f", nor are the next {last - first:,}" if last > first else ""
