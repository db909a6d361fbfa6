"""The counts of every column, beside those of M-BEIR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracelib.data.check.coverage import index_pools
from tracelib.data.check.expected import MBEIR_TEST_COUNTS, ExpectedCounts
from tracelib.data.check.findings import Finding, format_count, make_note
from tracelib.data.check.id_index import IdIndex
from tracelib.data.check.line_table import LineTable
from tracelib.data.check.sources import Source
from tracelib.data.check.tree import Tree

_SMALL_POOL = 50
"""The deepest recall that evaluation reports."""


@dataclass(frozen=True)
class ColumnCounts:
    """Counts of a query file and what belongs to it.

    Args:
        split: `train`, `val` or `test`.
        stem: Column, in train data set.
        num_queries: Lines of the query file.
        num_candidates: Lines of the local pool, in train of the train pool; None without one.
        num_qrels: Pairs of query and positive in the qrels; None without qrels.
        positives_per_query: Mean number of positives, by the qrels where there are any.
        max_positives: Largest number of positives of a query.
        num_cross_pool: Pairs of the qrels whose positive is in another column's pool; None for
            train, which has one pool.
        expected: M-BEIR's counts, for its test columns.
    """

    split: str
    stem: str
    num_queries: int
    num_candidates: int | None
    num_qrels: int | None
    positives_per_query: float
    max_positives: int
    num_cross_pool: int | None
    expected: ExpectedCounts | None


def count_columns(tree: Tree) -> list[ColumnCounts]:
    """Return the counts of every query file, by split."""
    pools = {split: index_pools(tree, split) for split in ("train", "val", "test")}
    rows = [_count_column(tree, source, queries, pools) for source, queries in tree.select("query")]
    return sorted(rows, key=lambda row: ("train", "val", "test").index(row.split))


def _count_column(
    tree: Tree, source: Source, queries: LineTable, pools: dict[str, IdIndex]
) -> ColumnCounts:
    split = source.split or ""
    is_column = split != "train" and not source.is_union
    pool = (
        tree.find_pool(source.stem, split) if is_column else tree.find("union_pool", "union", split)
    )
    qrels = tree.find("qrels", source.stem, split)
    table, most = queries, int(queries.num_positives.max(initial=0))
    num_cross_pool = None
    if qrels:
        table = qrels[1]
        _, counts = np.unique(table.ids[table.positive_places()], return_counts=True)
        most = int(counts.max(initial=0))
        if pool and is_column:
            elsewhere = IdIndex(pool[1].ids).find(table.positives) < 0
            num_cross_pool = int(np.sum(elsewhere & (pools[split].find(table.positives) >= 0)))
    return ColumnCounts(
        split=split,
        stem=source.stem,
        num_queries=len(queries),
        num_candidates=len(pool[1]) if pool else None,
        num_qrels=len(table.positives) if qrels else None,
        positives_per_query=len(table.positives) / max(len(queries), 1),
        max_positives=most,
        num_cross_pool=num_cross_pool,
        expected=MBEIR_TEST_COUNTS.get(source.stem) if split == "test" else None,
    )


def note_small_pools(tree: Tree) -> Iterator[Finding]:
    """Note pools smaller than the deepest recall."""
    for source, table in tree.select("pool"):
        if len(table) < _SMALL_POOL:
            number = format_count(len(table), "candidate")
            message = f"{number}: recall@{_SMALL_POOL} takes the whole pool"
            yield make_note("file", source.name, None, message)
