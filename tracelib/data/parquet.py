"""Rows of a Parquet file in the form of JSON Lines, so that both are checked by the same rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tracelib.data.jsonl import DataError

SUFFIX = ".parquet"
_BATCH_ROWS = 4096


def read_parquet_lines(path: Path) -> Iterator[bytes]:
    """Yield each row of a Parquet file as a JSON object in UTF-8.

    Raises:
        DataError: The file is no Parquet or damaged, or a row has a value that JSON does not know.
    """
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield _encode_row(fields, path, number)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: no whole Parquet file, read up to row {number}: {error}; write it again"
        ) from error


def _encode_row(fields: dict[str, Any], path: Path, number: int) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}:{number}: the row {fields!r:.80} is no JSON: {error}") from error
