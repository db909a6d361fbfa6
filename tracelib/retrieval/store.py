"""Embeddings on disk, committed batch by batch: a killed run loses the batch it was at, no more.

A part is a folder with the embeddings of one column and side, in pool order, cut into shards of
`SHARD_ROWS` records. A shard is one .npy file of rows of fixed width: the record's id, what is
stored of it, and a checksum, which commits the row. While rows are missing its name ends in
`.partial.npy`; the writer of its last row renames it. One process at a time writes a shard, and
has its last one flushed before it takes another, so ranks may share a part on a network disk.
`key.json` says what the embeddings are of.

Shapes: N records of a part, B of a batch, D dimensions, L tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

SHARD_ROWS = 1024
_KEY_FILE = "key.json"

EmbeddingType = Literal["float32", "float16"]
Row = np.ndarray[Any, np.dtype[Any]]


class StoreError(ValueError):
    """Stored embeddings that are of something else, or are not whole."""


def build_row_type(
    embedding_size: int,
    embedding_type: EmbeddingType = "float32",
    max_rationale_tokens: int | None = None,
) -> np.dtype[Any]:
    """Return the layout of a stored row: a candidate's, or with a token limit a query's.

    >>> build_row_type(4).names
    ('id', 'embedding', 'checksum')
    """
    thought: list[Any] = [
        ("thinks", "?"),
        ("think_probability", "<f4"),
        ("emb_is_first", "?"),
        ("is_forced", "?"),
        ("num_tokens", "<i4"),
        ("token_ids", "<i4", (max_rationale_tokens,)),
    ]
    number = {"float32": "<f4", "float16": "<f2"}[embedding_type]
    fields: list[Any] = [("id", "<i8"), ("embedding", number, (embedding_size,))]
    fields += [] if max_rationale_tokens is None else thought
    return np.dtype([*fields, ("checksum", "<u4")])


def compute_digest(key: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that stand for a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


class StoredPart:
    """The embeddings of one column and side.

    Args:
        folder: Its folder; made when missing.
        key: What the embeddings are of, as JSON values: fingerprint, prompts, gate, source file.
        ids: `[N]` int64 ids of the records in pool order.
        row_type: Layout of a row, of `build_row_type`.

    Raises:
        StoreError: The folder holds embeddings of another key.
    """

    def __init__(
        self, folder: Path, key: Mapping[str, Any], ids: Row, row_type: np.dtype[Any]
    ) -> None:
        self.folder, self.ids, self.row_type = folder, ids, row_type
        self.num_shards = -(-len(ids) // SHARD_ROWS)
        self._open_shard: int | None = None
        self._rows: Any = None
        self._num_missing = 0
        text = json.dumps({**key, "num_records": len(ids), "row": str(row_type)}, indent=1)
        self._check_key(json.loads(text))
        if not (folder / _KEY_FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{_KEY_FILE}.{os.getpid()}.tmp"
            temporary.write_text(text + "\n")
            temporary.replace(folder / _KEY_FILE)

    def _check_key(self, key: dict[str, Any]) -> None:
        path = self.folder / _KEY_FILE
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise StoreError(f"{path} is broken ({error}); remove {self.folder}") from error
        differing = [name for name in {**found, **key} if found.get(name) != key.get(name)]
        if differing:
            there = ", ".join(f"{name} {str(found.get(name))[:60]!r}" for name in differing)
            here = ", ".join(f"{name} {str(key.get(name))[:60]!r}" for name in differing)
            raise StoreError(
                f"{path} is of other embeddings: {there} there, {here} asked for; remove "
                f"{self.folder} or choose another store_dir"
            )

    def is_closed(self, shard: int) -> bool:
        """Whether a shard lacks no row and has its final name."""
        return self._get_path(shard).exists()

    def find_committed(self, shard: int) -> Row:
        """Return for each record of a shard whether its row is there and whole."""
        span, partial = self._get_span(shard), self._get_partial_path(shard)
        if self.is_closed(shard):
            return np.ones(span.stop - span.start, dtype=bool)
        if not partial.exists():
            return np.zeros(span.stop - span.start, dtype=bool)
        return _find_whole(np.load(partial, mmap_mode="r"))

    def write(self, places: Sequence[int], values: Mapping[str, Row]) -> None:
        """Commit the rows of a batch; the shard is closed with its last row.

        Args:
            places: B places, all in one shard that this process writes.
            values: `[B, ...]` per field but `id` and `checksum`; embeddings of any length, which
                are stored as unit vectors.

        Raises:
            ValueError: An embedding is zero or not finite.
        """
        rows: Row = np.zeros(len(places), self.row_type)
        for name, value in values.items():
            ids = self.ids[np.asarray(places)]
            rows[name] = _compute_units(value, ids) if name == "embedding" else value
        self.write_rows(places, rows)

    def write_rows(self, places: Sequence[int], rows: Row) -> None:
        """Commit rows as they are, but for ids and checksums, which are set; see `write`."""
        shard, offsets = places[0] // SHARD_ROWS, np.asarray(places) % SHARD_ROWS
        if self.is_closed(shard):
            return
        rows["id"] = self.ids[np.asarray(places)]
        rows["checksum"] = _compute_checksums(rows)
        self._open(shard)
        self._num_missing -= int((self._rows["checksum"][offsets] == 0).sum())
        self._rows[offsets] = rows
        if not self._num_missing:
            self._close(shard)

    def close_whole(self, shard: int) -> None:
        """Close a shard that lacks no row, as when its writer was killed just before closing it."""
        if not self.is_closed(shard):
            self._open(shard)
            if not self._num_missing:
                self._close(shard)

    def flush(self) -> None:
        """Have what was written reach the disk, and let go of the shard that is open."""
        if self._open_shard is not None:
            self._rows.flush()
            self._open_shard = self._rows = None

    def iterate_shards(self, shards: Sequence[int] | None = None) -> Iterator[tuple[int, Row]]:
        """Yield the first place and the rows of each shard, or of some, mapped read-only.

        Raises:
            StoreError: A shard is missing, or holds other records.
        """
        for shard in range(self.num_shards) if shards is None else shards:
            path = self._get_path(shard)
            if not path.exists():
                raise StoreError(f"{path} is missing: these embeddings are not whole; embed again")
            rows: Row = np.load(path, mmap_mode="r")
            if rows.dtype != self.row_type or not np.array_equal(
                rows["id"], self.ids[self._get_span(shard)]
            ):
                raise StoreError(f"{path} holds other records; remove {self.folder}")
            yield shard * SHARD_ROWS, rows

    def read_into(self, field: str, values: Row) -> None:
        """Fill `values` `[N, ...]` with a field of all records.

        Raises:
            StoreError: A shard is missing, or holds other records.
        """
        for place, rows in self.iterate_shards():
            values[place : place + len(rows)] = rows[field]

    def read_committed(self, place: int) -> Row:
        """Return a copy of one committed row `[1]`, also of a shard that is not closed.

        Raises:
            StoreError: It is not committed.
        """
        shard, offset = divmod(place, SHARD_ROWS)
        # The last look is for a shard that was closed between the first two.
        paths = (self._get_path(shard), self._get_partial_path(shard), self._get_path(shard))
        for path in paths:
            try:
                row: Row = np.load(path, mmap_mode="r")[offset : offset + 1].copy()
            except FileNotFoundError:
                continue
            if _find_whole(row).all():
                return row
        raise StoreError(f"{paths[0]} lacks a row: these embeddings are not whole; embed again")

    def _get_span(self, shard: int) -> slice:
        return slice(shard * SHARD_ROWS, min(len(self.ids), (shard + 1) * SHARD_ROWS))

    def _get_path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.npy"

    def _get_partial_path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.partial.npy"

    def _open(self, shard: int) -> None:
        """Open a shard, made empty when missing; a row that was cut short counts as missing."""
        if self._open_shard == shard:
            return
        self.flush()
        path = self._get_partial_path(shard)
        if not path.exists():
            self._make_shard(path, self._get_span(shard))
        self._rows = np.lib.format.open_memmap(path, "r+")
        is_whole = _find_whole(self._rows)
        self._rows["checksum"][~is_whole] = 0
        self._open_shard, self._num_missing = shard, int((~is_whole).sum())

    def _make_shard(self, path: Path, span: slice) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            rows = np.lib.format.open_memmap(
                temporary, "w+", self.row_type, (span.stop - span.start,)
            )
            del rows
            with temporary.open("r+b") as file:  # a mapped file has no way to say: disk full
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            temporary.replace(path)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be made: {error}; make room or choose another store_dir"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _close(self, shard: int) -> None:
        self.flush()
        self._get_partial_path(shard).replace(self._get_path(shard))


def _compute_units(embeddings: Row, ids: Row) -> Row:
    """Return `[B, D]` float64 unit vectors."""
    values = embeddings.astype(np.float64)
    norms = np.sqrt(np.square(values).sum(1, keepdims=True))
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        record = ids[bad[:, 0]][0]
        raise ValueError(
            f"the embedding of record {record} has norm {norms[bad][0]}; it must be finite and not "
            "zero (weights, precision or learning rate)"
        )
    units: Row = values / norms
    return units


def _compute_checksums(rows: Row) -> Row:
    """Return the checksum of each row, never 0."""
    size = rows.dtype.itemsize
    width, content = size - rows.dtype["checksum"].itemsize, memoryview(rows.tobytes())
    starts = range(0, len(content), size)
    return np.array([zlib.crc32(content[i : i + width]) or 1 for i in starts], dtype=np.uint32)


def _find_whole(rows: Row) -> Row:
    """Return which rows were committed and are as they were written."""
    is_whole: Row = rows["checksum"] != 0
    is_whole[is_whole] = rows["checksum"][is_whole] == _compute_checksums(rows[is_whole])
    return is_whole
