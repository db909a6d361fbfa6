"""Looks at every picture once, and remembers those that are fine.

Shapes: R references, one for each different picture.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from tracelib.data.check.entries import find_picture
from tracelib.data.check.findings import Finding, clean_message
from tracelib.data.check.id_index import Ints
from tracelib.data.check.picture_memory import Keys, PictureMemory
from tracelib.data.check.sources import Source
from tracelib.data.check.tree import Tree
from tracelib.data.check.workers import run_tasks
from tracelib.data.images import MAX_ASPECT_RATIO, MAX_PIXELS, load_image, open_image

PictureMode = Literal["decode", "header", "none"]
_PICTURES_PER_TASK = 64
_LOOKUPS_PER_TASK = 2048


@dataclass(frozen=True)
class References:
    """Where the path of each different picture is read: the first line that names it.

    Args:
        sources: All files.
        files: `[R]` number of the file.
        lines: `[R]` line, from 1.
        offsets: `[R]` first byte of the line.
        counts: `[R]` lines of all files that name the picture.
    """

    sources: tuple[Source, ...]
    files: Ints
    lines: Ints
    offsets: Ints
    counts: Ints

    def __len__(self) -> int:
        return len(self.files)

    def take(self, places: Ints | slice) -> References:
        """Return some of them."""
        arrays = (self.files, self.lines, self.offsets, self.counts)
        return References(self.sources, *(array[places] for array in arrays))

    def split(self, size: int) -> list[References]:
        """Return them in parts of at most `size`."""
        return [self.take(slice(i, i + size)) for i in range(0, len(self), size)]


@dataclass(frozen=True)
class PictureCounts:
    """How many pictures were looked at.

    Args:
        num_pictures: Different pictures that the records name.
        num_remembered: Of these, found fine by an earlier run and not changed since.
        num_broken: Of these, with a fault.
    """

    num_pictures: int = 0
    num_remembered: int = 0
    num_broken: int = 0


def find_references(tree: Tree) -> References:
    """Return the first line that names each picture, file by file in order."""
    sources = tuple(tree.tables)
    columns: list[list[NDArray[np.generic]]] = [[], [], [], []]
    for number, table in enumerate(tree.tables.values()):
        places = np.flatnonzero(table.pictures)
        values = table.pictures[places], np.full(len(places), number), places + 1
        for column, array in zip(columns, (*values, table.offsets[places]), strict=True):
            column.append(array)
    if not columns[0]:
        return References(sources, *(np.empty(0, np.int64) for _ in range(4)))
    pictures, files, lines, offsets = (np.concatenate(column) for column in columns)
    _, firsts, counts = np.unique(pictures, return_index=True, return_counts=True)
    order = np.argsort(firsts)
    firsts, counts = firsts[order], counts[order]
    return References(sources, files[firsts], lines[firsts], offsets[firsts], counts)


def check_pictures(
    root: Path,
    references: References,
    mode: PictureMode,
    memory: PictureMemory,
    workers: Executor | None,
    advance: Callable[[int], None],
) -> tuple[list[Finding], PictureCounts]:
    """Look at every picture that is not known to be fine.

    Args:
        root: Data root.
        references: The pictures.
        mode: Whether to decode them or to read their headers.
        memory: Those that are fine; grows while this runs.
        workers: Where to look.
        advance: Called with the number of pictures done since the last call.
    """
    num_pictures = len(references)
    if len(memory):
        is_known = np.zeros(num_pictures, dtype=bool)
        tasks = [(root, part, mode) for part in references.split(_LOOKUPS_PER_TASK)]
        for place, keys in run_tasks(workers, compute_keys, tasks):
            start = place * _LOOKUPS_PER_TASK
            is_known[start : start + len(keys)] = memory.knows(keys)
            advance(int(is_known[start : start + len(keys)].sum()))
        references = references.take(np.flatnonzero(~is_known))
    num_remembered = num_pictures - len(references)
    findings: list[Finding] = []
    tasks = [(root, part, mode) for part in references.split(_PICTURES_PER_TASK)]
    for place, (keys, found) in run_tasks(workers, verify_pictures, tasks):
        memory.remember(keys)
        findings += found
        advance(len(tasks[place][1]))
    return findings, PictureCounts(num_pictures, num_remembered, len(findings))


def compute_keys(root: Path, references: References, mode: PictureMode) -> Keys:
    """Return the key of each picture; 0 for one that is not there."""
    with _PathReader(root, references.sources) as reader:
        paths = [reader.read(references, place) for place in range(len(references))]
    return np.array([_compute_key(root, path, mode) for path in paths], dtype=np.uint64)


def verify_pictures(
    root: Path, references: References, mode: PictureMode
) -> tuple[Keys, list[Finding]]:
    """Return the keys of the pictures that are fine, and the faults of the others."""
    keys: list[int] = []
    findings: list[Finding] = []
    look = load_image if mode == "decode" else _read_header
    with _PathReader(root, references.sources) as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        for place in range(len(references)):
            path = reader.read(references, place)
            key = _compute_key(root, path, mode)
            try:
                look(root, path)
            except Exception as error:  # a decoder may raise anything on a broken file
                reason = clean_message(str(error) or repr(error), f"{root / path}: ")
                findings.append(_make_fault(references, place, path, reason))
            else:
                keys.append(key)
    return np.array(keys, dtype=np.uint64), findings


def _make_fault(references: References, place: int, path: str, reason: str) -> Finding:
    source = references.sources[int(references.files[place])]
    num_lines = int(references.counts[place])
    others = f" ({num_lines:,} lines name it)" if num_lines > 1 else ""
    message = clean_message(f"picture {path!r}: {reason}{others}", "")
    return Finding("picture", source.name, int(references.lines[place]), message)


class _PathReader:
    """Reads the paths of pictures from the lines that name them."""

    def __init__(self, root: Path, sources: tuple[Source, ...]) -> None:
        self._root, self._sources = root, sources
        self._number = -1
        self._file: BinaryIO | None = None

    def __enter__(self) -> _PathReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, references: References, place: int) -> str:
        number = int(references.files[place])
        source = self._sources[number]
        path = self._root / source.name
        if self._file is None or number != self._number:
            self.__exit__()
            self._number, self._file = number, path.open("rb")
        self._file.seek(int(references.offsets[place]))
        return find_picture(source, self._file.readline(), path, int(references.lines[place]))


def _compute_key(root: Path, path: str, mode: PictureMode) -> int:
    """Return a number that changes with the file, its size, its time of change and the limits."""
    try:
        status = os.stat(root / path)
    except (OSError, ValueError):
        return 0
    words = (mode, MAX_PIXELS, MAX_ASPECT_RATIO, status.st_size, status.st_mtime_ns, path)
    text = " ".join(map(str, words)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def _read_header(root: Path, relative_path: str) -> None:
    """Check what can be checked without decoding."""
    with open_image(root, relative_path):
        pass
