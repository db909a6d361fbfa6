"""The files of an MMEB tree: shards of a split, hashed, checked and memory-mapped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from tracelib.data.jsonl import DataError
from tracelib.data.table_cache import hash_file

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.")
_LOADERS = {
    ".parquet": datasets.Dataset.from_parquet,
    ".json": datasets.Dataset.from_json,
    ".jsonl": datasets.Dataset.from_json,
}
_BATCH_ROWS = 100
_TEXT_TYPES = ("string", "large_string", "null")


@dataclass(frozen=True)
class RowTable:
    """One mapped file.

    Args:
        path: The file as it came.
        rows: Its rows.
    """

    path: Path
    rows: datasets.Dataset

    def iterate(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield each row with its file and number, from 1, for errors."""
        number = 0
        for batch in self.rows.iter(batch_size=_BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield dict(zip(batch, values, strict=True)), f"{self.path}: row {number}"


def find_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split, `split-<i>-of-<n>.parquet`, `.json` or `.jsonl`, in order.

    Raises:
        DataError: There is none, a shard is missing, or they are of several formats.
    """
    files = sorted(path for path in folder.glob(f"{split}-*") if path.suffix in _LOADERS)
    if not files:
        raise DataError(f"{folder}: no {split}-*.parquet is there; download it")
    if len({path.suffix for path in files}) > 1:
        raise DataError(f"{folder}: {split}-* is there in several formats; keep one")
    shards = [match.groups() for path in files if (match := _SHARD.search(path.name))]
    if shards != [(f"{i:05}", f"{len(files):05}") for i in range(len(files))]:
        names = ", ".join(path.name for path in files)
        raise DataError(f"{folder}: {names} are not all shards {split}-<i>-of-<n>; fetch the rest")
    return files


def open_table(
    path: Path, columns: Mapping[str, bool], optional: Sequence[str], cache_dir: Path
) -> RowTable:
    """Convert a file to Arrow, once per content, and map it.

    Args:
        path: The file.
        columns: Columns it must have, each with whether it holds lists of texts, not texts.
        optional: Columns of texts of which it has all or none.
        cache_dir: Where Arrow files go.

    Raises:
        DataError: The file cannot be read or has no rows, or a column is missing or of another
            type.
    """
    try:
        cache = cache_dir / hash_file(path)[:16]
        rows = _LOADERS[path.suffix](str(path), cache_dir=str(cache))
    except (DatasetGenerationError, OSError, ValueError, StopIteration) as error:
        raise DataError(
            f"{path}: the file has no rows or cannot be read: {error.__cause__ or error}; "
            "fetch it again"
        ) from error
    names = rows.column_names
    wanted = dict(columns)
    if any(name in names for name in optional):
        wanted |= dict.fromkeys(optional, False)
    if missing := [name for name in wanted if name not in names]:
        raise DataError(f"{path}: columns {missing} are missing; it has {names}")
    for name, is_list in wanted.items():
        kind = rows.features[name]
        item = kind.feature if is_list and isinstance(kind, datasets.List) else kind
        if (item is kind) == is_list or getattr(item, "dtype", None) not in _TEXT_TYPES:
            expected = "lists of texts" if is_list else "texts"
            raise DataError(f"{path}: column {name} holds {kind}, expected {expected}")
    return RowTable(path, rows.select_columns(list(wanted)))
