"""All lines of an M-BEIR tree, file by file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracelib.data.check.entries import CANDIDATE_MODALITIES
from tracelib.data.check.findings import Finding, format_count, make_note
from tracelib.data.check.id_index import Ints
from tracelib.data.check.line_table import LineTable, join_tables, scan_lines
from tracelib.data.check.sources import Source, SourceKind
from tracelib.data.check.workers import run_tasks
from tracelib.data.layout import CANONICAL_COLUMNS, DATASET_NAMES, needs_split_pool
from tracelib.data.records import MAX_CANDIDATE_NUMBER, TASK_MODALITIES
from tracelib.retrieval.columns import read_task_id

_PART_BYTES = 1 << 24


@dataclass(frozen=True)
class Tree:
    """The tables of a tree's files.

    Args:
        root: Data root.
        tables: Each file's lines, columns in canonical order.
    """

    root: Path
    tables: dict[Source, LineTable]

    def select(self, *kinds: SourceKind) -> Iterator[tuple[Source, LineTable]]:
        """Yield the files of some kinds."""
        return ((s, table) for s, table in self.tables.items() if s.kind in kinds)

    def find(
        self, kind: SourceKind, stem: str, split: str | None
    ) -> tuple[Source, LineTable] | None:
        """Return the file of a kind, stem and split; None where there is none."""
        found = (pair for pair in self.select(kind) if pair[0].stem == stem)
        return next((pair for pair in found if pair[0].split == split), None)

    def find_pool(self, stem: str, split: str) -> tuple[Source, LineTable] | None:
        """Return a column's local pool: that of the split where there is or must be one."""
        shared = None if needs_split_pool(stem) else self.find("pool", stem, None)
        return self.find("pool", stem, split) or shared

    def local_pools(self, split: str) -> list[tuple[Source, LineTable]]:
        """Return the local pools of a split in canonical order."""
        stems = dict.fromkeys(source.stem for source, _ in self.select("pool"))
        found = (self.find_pool(stem, split) for stem in stems)
        return [pair for pair in found if pair is not None]

    def may_be_elsewhere(
        self, split: str, candidates: Ints, modalities: NDArray[np.int8]
    ) -> NDArray[np.bool_]:
        """Return whether each candidate `[N]` may be in a pool of M-BEIR that is not in this tree.

        So a tree with some of the columns has no fault: it lacks pools, not candidates.

        Args:
            split: `val` or `test`.
            candidates: `[N]` ids.
            modalities: `[N]` places in `CANDIDATE_MODALITIES`, -1 for unknown.
        """
        lacks = np.zeros((len(DATASET_NAMES), len(CANDIDATE_MODALITIES) + 1), dtype=np.bool_)
        for column in CANONICAL_COLUMNS:
            if self.find_pool(column, split) is None:
                modality = TASK_MODALITIES[read_task_id(column)][1]
                dataset_id = DATASET_NAMES.index(column.partition("_")[0])
                lacks[dataset_id, CANDIDATE_MODALITIES.index(modality)] = True
        dataset_ids = candidates // MAX_CANDIDATE_NUMBER
        is_known = (candidates >= 0) & (dataset_ids < len(DATASET_NAMES))
        found: NDArray[np.bool_] = is_known & lacks[np.where(is_known, dataset_ids, 0), modalities]
        return found


def scan_tree(
    root: Path, sources: list[Source], workers: Executor | None, advance: Callable[[int], None]
) -> Tree:
    """Read all files.

    Args:
        root: Data root.
        sources: The files.
        workers: Where to read them.
        advance: Called with the number of bytes read since the last call.
    """
    tasks = []
    for source in sources:
        size = (root / source.name).stat().st_size
        for start in range(0, max(size, 1), _PART_BYTES):
            tasks.append((root, source, start, min(start + _PART_BYTES, size)))
    parts: defaultdict[Source, dict[int, LineTable]] = defaultdict(dict)
    for place, part in run_tasks(workers, scan_lines, tasks):
        _, source, start, stop = tasks[place]
        parts[source][start] = part
        advance(stop - start)
    tables = {
        source: join_tables([part for _, part in sorted(parts.pop(source).items())])
        for source in sources
    }
    return Tree(root, tables)


def find_broken_lines(tree: Tree) -> Iterator[Finding]:
    """Yield the lines that break the format, empty files, and notes of what is tolerated."""
    for source, table in tree.tables.items():
        if not len(table):
            yield Finding("file", source.name, None, "the file is empty; it needs a line")
        for line, message in table.faults:
            yield Finding("row", source.name, line, message)
        for remark, (number, line) in table.remarks.items():
            yield make_note(
                "row",
                source.name,
                line,
                f"{remark} ({format_count(number, 'such line')}, this is the first)",
            )


def gather_ids(files: list[tuple[Source, LineTable]]) -> Ints:
    """Return the ids of several files, one file after the other."""
    return np.concatenate([np.empty(0, np.int64), *(table.ids for _, table in files)])


def locate(files: list[tuple[Source, LineTable]], places: Ints) -> list[tuple[str, int]]:
    """Return file and line, from 1, of places in the ids that `gather_ids` returns."""
    starts = np.cumsum([0, *(len(table) for _, table in files)])
    numbers = np.searchsorted(starts, places, side="right") - 1
    lines = places - starts[numbers] + 1
    names = [source.name for source, _ in files]
    return [(names[n], line) for n, line in zip(numbers.tolist(), lines.tolist(), strict=True)]
