"""Files of lines as numpy columns: one entry a line, also for broken lines.

Shapes: L lines, P positives of all lines together, N negatives of all lines together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelib.data.check.entries import Entry, parse_line, salvage_id
from tracelib.data.check.findings import clean_message
from tracelib.data.check.id_index import Ints
from tracelib.data.check.sources import Source

_ARRAYS: dict[str, type] = {
    "ids": np.int64,
    "task_ids": np.int8,
    "modalities": np.int8,
    "is_broken": np.bool_,
    "checksums": np.uint32,
    "pictures": np.uint64,
    "offsets": np.int64,
    "num_positives": np.int32,
    "positives": np.int64,
    "num_negatives": np.int32,
    "negatives": np.int64,
}


@dataclass(frozen=True)
class LineTable:
    """The lines of a file, or of a part of it.

    Args:
        ids: `[L]` integer id of the query, in pools of the candidate; -1 when a broken line does
            not show it.
        task_ids: `[L]` task of a query, qrels line or rationale, -1 for none.
        modalities: `[L]` place of a candidate's modality in `CANDIDATE_MODALITIES`, -1 for none.
        is_broken: `[L]` whether the line breaks the format.
        checksums: `[L]` checksum of a candidate's content, 0 for none.
        pictures: `[L]` hash of the picture's path, 0 for none.
        offsets: `[L]` first byte of each line.
        num_positives: `[L]` positives of each line.
        positives: `[P]` their integer ids.
        num_negatives: `[L]` negatives of each line.
        negatives: `[N]` their integer ids.
        faults: Line, from 1, and message of each broken line.
        remarks: What is odd and tolerated, with the number of lines and the first line, from 1.
    """

    ids: Ints
    task_ids: NDArray[np.int8]
    modalities: NDArray[np.int8]
    is_broken: NDArray[np.bool_]
    checksums: NDArray[np.uint32]
    pictures: NDArray[np.uint64]
    offsets: Ints
    num_positives: NDArray[np.int32]
    positives: Ints
    num_negatives: NDArray[np.int32]
    negatives: Ints
    faults: list[tuple[int, str]]
    remarks: dict[str, tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    def positive_places(self) -> Ints:
        """Return the place `[P]` of the line of each positive."""
        return np.repeat(np.arange(len(self)), self.num_positives)

    def negative_places(self) -> Ints:
        """Return the place `[N]` of the line of each negative."""
        return np.repeat(np.arange(len(self)), self.num_negatives)


def scan_lines(root: Path, source: Source, start: int, stop: int) -> LineTable:
    """Read the lines that begin in the bytes `start` .. `stop` - 1 of a file.

    Args:
        root: Data root.
        source: The file.
        start: First byte.
        stop: Byte after the last.
    """
    path = root / source.name
    entries: list[Entry] = []
    offsets: list[int] = []
    faults: list[tuple[int, str]] = []
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        position = file.tell()
        while position < stop and (text := file.readline()):
            offsets.append(position)
            position += len(text)
            line = len(offsets)
            try:
                entry = parse_line(source, text, path, line)
            except (ValueError, RecursionError) as error:  # nested deeper than Python reads
                faults.append((line, clean_message(str(error), f"{path}:{line}: ")))
                entry = Entry(salvage_id(source, text), is_broken=True)
            entries.append(entry)
    return _build_table(entries, offsets, faults)


def join_tables(parts: Sequence[LineTable]) -> LineTable:
    """Return the table of a whole file from those of its parts, in order."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
    }
    faults: list[tuple[int, str]] = []
    remarks: dict[str, tuple[int, int]] = {}
    shift = 0
    for part in parts:
        faults += [(line + shift, message) for line, message in part.faults]
        for remark, (number, line) in part.remarks.items():
            before, first = remarks.get(remark, (0, line + shift))
            remarks[remark] = (before + number, first)
        shift += len(part)
    return LineTable(**arrays, faults=faults, remarks=remarks)


def _build_table(
    entries: list[Entry], offsets: list[int], faults: list[tuple[int, str]]
) -> LineTable:
    values: dict[str, Iterable[int]] = {
        "ids": (entry.record_id for entry in entries),
        "task_ids": (entry.task_id for entry in entries),
        "modalities": (entry.modality for entry in entries),
        "is_broken": (entry.is_broken for entry in entries),
        "checksums": (entry.checksum for entry in entries),
        "pictures": (entry.picture for entry in entries),
        "offsets": offsets,
        "num_positives": (len(entry.positives) for entry in entries),
        "positives": (key for entry in entries for key in entry.positives),
        "num_negatives": (len(entry.negatives) for entry in entries),
        "negatives": (key for entry in entries for key in entry.negatives),
    }
    arrays: dict[str, Any] = {
        name: np.fromiter(values[name], dtype) for name, dtype in _ARRAYS.items()
    }
    remarks: dict[str, tuple[int, int]] = {}
    for line, entry in enumerate(entries, 1):
        for remark in entry.remarks:
            number, first = remarks.get(remark, (0, line))
            remarks[remark] = (number + 1, first)
    return LineTable(**arrays, faults=faults, remarks=remarks)
