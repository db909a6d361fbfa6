"""The plan of a download: which files by their documented names, what is there, the disk needed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.filesize import decimal

from tracelib.data.download.archive import PICTURES, read_note
from tracelib.data.download.hub import CheckedFiles, DownloadError, HubFile, count_partial_bytes
from tracelib.data.layout import CANONICAL_COLUMNS, Layout, needs_split_pool

Split = Literal["train", "val", "test"]
State = Literal["there", "unpacked", "unchecked", "different", "begun", "absent"]
_PART = re.compile(rf"{PICTURES}\.tar\.gz\.part-([0-9]{{2}})")
_RATIONALES = re.compile(r"rationales/mbeir_([a-z0-9]+)_(train|val|test)_rationales\.jsonl")
_UNPACKED_PER_PACKED = 1.1  # JPEGs hardly shrink, and file systems round up to blocks


@dataclass(frozen=True)
class PlannedFile:
    """A file to have, and what is there.

    Args:
        file: The file.
        state: `unchecked` has the right size, `different` another one; the pictures of an
            `unpacked` part are there.
        num_bytes: Bytes that need not be fetched.
    """

    file: HubFile
    state: State
    num_bytes: int


@dataclass(frozen=True)
class DownloadPlan:
    """What a download has to do.

    Args:
        root: Data root.
        files: All files to have.
        parts: Those that are parts of an archive, to be unpacked where they are not.
        num_unpack_bytes: Estimate of the bytes that unpacking will write.
    """

    root: Path
    files: list[PlannedFile]
    parts: list[HubFile]
    num_unpack_bytes: int

    @property
    def num_fetch_bytes(self) -> int:
        """Bytes to fetch."""
        return sum(planned.file.size - planned.num_bytes for planned in self.files)

    @property
    def num_disk_bytes(self) -> int:
        """Bytes of disk needed; the parts are never joined on disk."""
        return self.num_fetch_bytes + self.num_unpack_bytes

    @property
    def num_free_bytes(self) -> int:
        """Bytes of disk that are free."""
        folders = (self.root, *self.root.absolute().parents)
        return shutil.disk_usage(next(path for path in folders if path.exists())).free

    def check(self) -> None:
        """Refuse what cannot end well.

        Raises:
            DownloadError: A file that is there differs, or the disk is too small.
        """
        for planned in self.files:
            if planned.state == "different":
                path = self.root / planned.file.path
                raise DownloadError(
                    f"{path} has {path.stat().st_size} bytes, not {planned.file.size} as in "
                    f"{planned.file.repository}; move it away to fetch that"
                )
        if self.num_disk_bytes > self.num_free_bytes:
            raise DownloadError(
                f"{self.root}: {decimal(self.num_disk_bytes)} of disk are needed and "
                f"{decimal(self.num_free_bytes)} are free; name another --root, take fewer "
                "--columns or --splits, or go without pictures (--images false)"
            )


def plan_download(files: Sequence[HubFile], parts: Sequence[HubFile], root: Path) -> DownloadPlan:
    """Plan to have files, and the pictures of the parts of an archive.

    Raises:
        DownloadError: There are pictures of another version of the archive.
    """
    planned = _look_at(files, root)
    if not parts:
        return DownloadPlan(root, planned, [], 0)
    note = read_note(root, [part.checksum for part in parts])
    if note.is_complete:
        planned += [PlannedFile(part, "unpacked", part.size) for part in parts]
        return DownloadPlan(root, planned, list(parts), 0)
    num_bytes = int(_UNPACKED_PER_PACKED * sum(part.size for part in parts)) - note.num_bytes
    return DownloadPlan(root, planned + _look_at(parts, root), list(parts), max(0, num_bytes))


def _look_at(files: Sequence[HubFile], root: Path) -> list[PlannedFile]:
    """Return what is there of each file."""
    checked = CheckedFiles(root)
    planned: list[PlannedFile] = []
    for file in files:
        path = root / file.path
        if path.exists():
            state: State = "there" if file in checked else "unchecked"
            if path.stat().st_size != file.size:
                state = "different"
            planned.append(PlannedFile(file, state, file.size))
        else:
            num_bytes = count_partial_bytes(file, root)
            planned.append(PlannedFile(file, "begun" if num_bytes else "absent", num_bytes))
    return planned


def check_columns(columns: Sequence[str] | None) -> list[str]:
    """Return the columns in canonical order, None being all.

    Raises:
        DownloadError: M-BEIR has no such column.
    """
    if columns is None:
        return list(CANONICAL_COLUMNS)
    if unknown := [column for column in columns if column not in CANONICAL_COLUMNS]:
        known = ", ".join(CANONICAL_COLUMNS)
        raise DownloadError(f"--columns: M-BEIR has no {', '.join(unknown)}; it has {known}")
    return [column for column in CANONICAL_COLUMNS if column in columns]


def list_datasets(columns: Sequence[str]) -> list[str]:
    """Return the data sets of columns.

    >>> list_datasets(["webqa_task1", "edis_task2", "webqa_task2"])
    ['webqa', 'edis']
    """
    return list(dict.fromkeys(column.partition("_task")[0] for column in columns))


def list_paths(
    columns: Sequence[str], splits: Sequence[Split], union_queries: bool, union_pools: bool
) -> list[str]:
    """Return the documented paths of queries, qrels, pools and instructions.

    Args:
        columns: Columns of M-BEIR.
        splits: Splits.
        union_queries: Whether those of train and val with all columns in one file are wanted.
        union_pools: Whether those of val and test are; that of train always is.
    """
    layout = Layout(Path())
    paths = [layout.instructions]
    for split in splits:
        stems = list_datasets(columns) if split == "train" else columns
        paths += [layout.query(stem, split) for stem in stems]
        paths += [layout.qrels(stem, split) for stem in stems]
        if split != "train":
            paths += [layout.pool(c, split if needs_split_pool(c) else None) for c in columns]
        if split == "train" or union_pools:
            paths.append(layout.union_pool(split))
        if union_queries and split != "test":
            is_train = split == "train"
            paths.append(layout.union_up_queries if is_train else layout.union_val_queries)
    return list(dict.fromkeys(path.as_posix() for path in paths))


def find_parts(repository: str, listed: Mapping[str, HubFile]) -> list[HubFile]:
    """Return the parts of the archive of pictures, in order.

    Raises:
        DownloadError: There is none, or one is missing between two.
    """
    parts = sorted(path for path in listed if _PART.fullmatch(path))
    expected = [f"{PICTURES}.tar.gz.part-{number:02d}" for number in range(max(len(parts), 1))]
    if parts != expected:
        raise DownloadError(
            f"{repository} has the archive parts {parts}, not {expected[0]} and the next ones; go "
            "without pictures (--images false) or name another revision"
        )
    return [listed[path] for path in parts]


def find_rationales(
    repository: str, listed: Mapping[str, HubFile], columns: Sequence[str], splits: Sequence[Split]
) -> list[HubFile]:
    """Return the files of rationale rows for columns and splits.

    Raises:
        DownloadError: There is none.
    """
    datasets = list_datasets(columns)
    matches = (match for path in listed if (match := _RATIONALES.fullmatch(path)))
    found = [listed[m[0]] for m in matches if m[1] in datasets and m[2] in splits]
    if not found:
        raise DownloadError(
            f"{repository} has no rationales/mbeir_<dataset>_<split>_rationales.jsonl with dataset "
            f"in {', '.join(datasets)} and split in {', '.join(splits)}; it has "
            f"{', '.join(sorted(listed)[:9]) or 'no files'}"
        )
    return found
