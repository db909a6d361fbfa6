"""Files that are there in full or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Give a place beside `path` to write to; once that is on disk, it becomes `path` at once.

    Its folder is made when needed. After an error, and after a kill, `path` is what it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all, making its folder when needed."""
    with replace_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left half written in a folder, in which nobody writes now."""
    for partial in folder.glob(".*.tmp"):
        partial.unlink(missing_ok=True)
