"""Keeps the table of each source file, converted once and found again by the file's content.

The folder of a source holds `manifest.json` and the folder of its table, named by format version
and digest. A table is there in full or not at all; the manifest, written last, says which holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from tracelib.data.arrow import ArrowTable
from tracelib.data.conversion import TableFormat, convert_source
from tracelib.data.jsonl import DataError

FORMAT_VERSION = 1
"""Raised whenever the rows of a table change their meaning, so that all are converted again."""
_MANIFEST = "manifest.json"
_CLOCK_NS = 20_000_000
"""Two writes this close may be given the same time by a file system."""


@dataclass(frozen=True)
class _Manifest:
    version: int
    source_size: int
    source_mtime_ns: int
    sha256: str
    num_rows: int | None  # None when nobody has asked for more than the digest

    @property
    def table_name(self) -> str:
        return f"v{self.version}-{self.sha256[:16]}"


def open_table(source: Path, folder: Path, table_format: TableFormat) -> ArrowTable:
    """Return the table of a source file, converted when there is none of its present content.

    One process converts, others wait for it. Size and time of change tell whether the content may
    be another; only then is the file hashed.

    Args:
        source: File to convert.
        folder: Folder to keep the table in, of this source alone.
        table_format: How its lines become rows.

    Raises:
        DataError: The file is missing, holds no row, or breaks its format; or `folder` cannot be
            written.
    """
    manifest = _update(source, folder, table_format)
    assert manifest.num_rows is not None
    return ArrowTable(source, folder / manifest.table_name, manifest.num_rows)


def hash_source(source: Path, folder: Path) -> str:
    """Return the SHA-256 of a source file, known from its conversion or computed and kept.

    Raises:
        DataError: The file is missing, or `folder` cannot be written.
    """
    return _update(source, folder, None).sha256


def _update(source: Path, folder: Path, table_format: TableFormat | None) -> _Manifest:
    """Return the manifest of the present content, with a table when a format is given."""
    needs_table = table_format is not None
    if manifest := _find_current(source, folder, needs_table):
        return manifest
    with _blame_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if manifest := _find_current(source, folder, needs_table):  # made while we waited
                return manifest
            for leftover in folder.glob("*.tmp"):
                shutil.rmtree(leftover)
            manifest = _renew(source, folder, table_format)
            partial = folder / f".{_MANIFEST}.partial"
            partial.write_text(json.dumps(asdict(manifest)) + "\n")
            partial.replace(folder / _MANIFEST)
            for table in folder.glob("v*-*"):
                if table.name != manifest.table_name:
                    shutil.rmtree(table)
    return manifest


def _find_current(source: Path, folder: Path, needs_table: bool) -> _Manifest | None:
    """Return the manifest if size and time say that it is of the source's present content."""
    stat, manifest = _read_stat(source), _read_manifest(folder)
    if manifest is None:
        return None
    has_table = manifest.num_rows is not None and (folder / manifest.table_name).exists()
    if needs_table and not has_table:
        return None
    looked_ns = (folder / _MANIFEST).stat().st_mtime_ns
    if (stat.st_size, stat.st_mtime_ns) != (manifest.source_size, manifest.source_mtime_ns):
        return None
    return manifest if looked_ns > stat.st_mtime_ns + _CLOCK_NS else None


def _renew(source: Path, folder: Path, table_format: TableFormat | None) -> _Manifest:
    """Hash the source, and convert it when a table is asked for that is not there."""
    before, manifest = _read_stat(source), _read_manifest(folder)
    sha256, num_rows = "", None
    has_table = manifest is not None and (folder / manifest.table_name).exists()
    if has_table or table_format is None:
        sha256 = hash_file(source)
        if has_table and manifest is not None and manifest.sha256 == sha256:
            num_rows = manifest.num_rows
    if table_format is not None and num_rows is None:
        sha256, num_rows = _convert(source, folder, table_format)
    after = _read_stat(source)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{source}: the file changed while it was read; start again")
    return _Manifest(FORMAT_VERSION, after.st_size, after.st_mtime_ns, sha256, num_rows)


def _convert(source: Path, folder: Path, table_format: TableFormat) -> tuple[str, int]:
    partial = folder / f"{os.getpid()}.tmp"
    partial.mkdir()
    try:
        sha256, num_rows = convert_source(source, partial, table_format)
        manifest = _Manifest(FORMAT_VERSION, 0, 0, sha256, num_rows)
        if (table := folder / manifest.table_name).exists():
            shutil.rmtree(table)  # of a process that ended before its manifest
        partial.rename(table)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sha256, num_rows


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> _Manifest | None:
    """Return the manifest, or None where there is none of this format version."""
    try:
        manifest = _Manifest(**json.loads((folder / _MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return manifest if manifest.version == FORMAT_VERSION else None


def _read_stat(source: Path) -> os.stat_result:
    """Return size and times of a source.

    Raises:
        DataError: It is missing or cannot be read.
    """
    try:
        with source.open("rb"):
            return source.stat()
    except FileNotFoundError as error:
        raise DataError(f"{source}: the file is missing") from error
    except OSError as error:
        raise DataError(f"{source}: the file cannot be read ({error})") from error


@contextmanager
def _blame_cache(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: the table of a source file cannot be kept here ({error}); set "
            "data.cache_dir to a folder that can be written"
        ) from error
