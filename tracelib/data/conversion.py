"""Converts the lines of a source file to an Arrow table with an id index and a digest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tracelib.data import parquet
from tracelib.data.arrow import TABLE_FILE, write_index
from tracelib.data.jsonl import DataError

_BATCH_ROWS = 8192
_QUIET_SECONDS = 2.0


@dataclass(frozen=True)
class TableFormat:
    """How the lines of a source file become rows; those of a Parquet file as JSON.

    Args:
        row_name: What a row is, for messages, e.g. `query`.
        features: Columns; the first is `id`.
        parse_line: From a line, its file and its number to the row's values, or None for no row.
        id_limit: Numbers of an id `D:N` are below it; the integer id is `D * id_limit + N`.
        unique_id: Name of the id in the file when each line has its own, or None where ids repeat.
        arrange: Puts the rows in order, or None to keep that of the file.
    """

    row_name: str
    features: Features
    parse_line: Callable[[bytes, Path, int], tuple[Any, ...] | None]
    id_limit: int
    unique_id: str | None
    arrange: Callable[[pa.Table], pa.Table] | None = None


def convert_source(source: Path, folder: Path, table_format: TableFormat) -> tuple[str, int]:
    """Write the table and the index of a source file to a folder.

    Returns:
        SHA-256 of the source, and the number of rows.

    Raises:
        DataError: The file holds no row or breaks its format; the message names file and line.
    """
    digest = hashlib.sha256()
    tables = _parse_tables(source, table_format, digest.update)
    if table_format.arrange is not None:
        tables = iter([table_format.arrange(pa.concat_tables(tables))])
    ids: list[NDArray[np.int64]] = []
    with (
        pa.OSFile(str(folder / TABLE_FILE), "wb") as stream,
        ArrowWriter(features=table_format.features, stream=stream) as writer,
    ):
        for table in tables:
            writer.write_table(table, _BATCH_ROWS)
            ids.append(table.column("id").to_numpy())
        num_rows, _ = writer.finalize()
    if not num_rows:
        lack = f"holds no {table_format.row_name}" if source.stat().st_size else "is empty"
        raise DataError(f"{source}: the file {lack}; at least one line is needed")
    sorted_ids, rows = write_index(folder, np.concatenate(ids))
    if table_format.unique_id:
        _check_unique(source, table_format, sorted_ids, rows)
    return digest.hexdigest(), num_rows


def _parse_tables(
    source: Path, table_format: TableFormat, update: Callable[[bytes], None]
) -> Iterator[pa.Table]:
    """Parse a file in batches of rows, the last of which may be empty; `update` gets its bytes."""
    schema = table_format.features.arrow_schema
    rows: list[tuple[Any, ...]] = []

    def build_table() -> pa.Table:
        columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
        arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
        rows.clear()
        return pa.table(arrays, schema=schema)

    with _show_progress(source) as show_progress:
        for number, (line, num_bytes) in enumerate(_read_lines(source, update), 1):
            if (values := table_format.parse_line(line, source, number)) is not None:
                rows.append(values)
            if len(rows) == _BATCH_ROWS:
                show_progress(num_bytes)
                yield build_table()
    yield build_table()


def _read_lines(source: Path, update: Callable[[bytes], None]) -> Iterator[tuple[bytes, int]]:
    """Yield each line, and how many bytes of the file are read; `update` gets all of these."""
    with source.open("rb") as file:
        if source.suffix != parquet.SUFFIX:
            num_bytes = 0
            for line in file:
                update(line)
                num_bytes += len(line)
                yield line, num_bytes
            return
        while block := file.read(1 << 20):
            update(block)
    for line in parquet.read_parquet_lines(source):
        yield line, source.stat().st_size


@contextmanager
def _show_progress(source: Path) -> Iterator[Callable[[int], None]]:
    """Give a function that shows bytes done of all: on a terminal, once it takes its time."""
    console = Console(stderr=True)
    words = TextColumn("{task.description}")
    columns = (words, BarColumn(), DownloadColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(f"converting {source.name}", total=source.stat().st_size)
    start = time.monotonic()

    def show_progress(num_bytes: int) -> None:
        progress.update(task, completed=num_bytes)
        if console.is_terminal and time.monotonic() - start > _QUIET_SECONDS:
            progress.start()

    try:
        yield show_progress
    finally:
        if progress.live.is_started:
            progress.stop()


def _check_unique(
    source: Path, table_format: TableFormat, ids: NDArray[np.int64], rows: NDArray[Any]
) -> None:
    again = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    if len(again):
        spot = again[np.argmin(rows[again])]
        name = "{}:{}".format(*divmod(int(ids[spot]), table_format.id_limit))
        raise DataError(
            f"{source}:{rows[spot] + 1}: {table_format.unique_id} {name!r} occurs twice in this "
            "file; drop one"
        )
