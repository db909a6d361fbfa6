"""The `mmeb-train` verb: MMEB's training pairs as a tree in M-BEIR's layout, to be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Literal

from rich.console import Console
from rich.progress import track

from tracelib.data.jsonl import DataError, Row, read_rows
from tracelib.data.layout import Layout
from tracelib.data.mmeb.reader import MMEBReader
from tracelib.data.mmeb.subsets import TRAIN_SUBSETS
from tracelib.data.mmeb.train_lines import SubsetRows
from tracelib.data.rationales import parse_rationale
from tracelib.data.table_cache import hash_file
from tracelib.retrieval.whole_files import replace_whole, write_whole

_ORACLE_FOLDER = "rationales_oracle"
_MANIFEST = "mmeb_train.json"
_FORMAT_VERSION = 1
"""Raised whenever the same pairs would give other files."""
_HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\n"


def mmeb_train(
    root: Path,
    style: Literal["original", "diverse_instruction"] = "original",
    subsets: list[str] | None = None,
    query_rewrites: Path | None = None,
    candidate_rewrites: Path | None = None,
    images_root: Path | None = None,
    rationales: Path | None = None,
    num_val: int = 64,
) -> None:
    """Write MMEB's training pairs as a tree in M-BEIR's layout, which `fit` trains on.

    The files go beside the subsets, so that the pictures stay where they are. Texts hold their
    instructions already: set data.texts to verbatim. Files that an earlier call with the same
    options has written are kept, so an interrupted call goes on where it was.

    Args:
        root: Folder in the layout of the hub's MMEB-train: SUBSET/original-00000-of-00001.parquet.
        style: Whether instructions are the benchmark's own or varied.
        subsets: Subsets to write, e.g. `[CIRR,NIGHTS]`; default is all that are below the root.
        query_rewrites: YAML file that maps subsets to rewrites of their queries (original,
            replacement, prefix_add, suffix_add, value_map); default leaves the texts alone.
        candidate_rewrites: The same for candidates.
        images_root: Folder below the root that picture paths start from; default is images.
        rationales: JSON Lines of rationale rows that know the target, for `rationales_oracle`:
            qid (SUBSET:ROW, rows from 1), reasoning, answer, teacher.
        num_val: Pairs of each subset that are kept out of training for the val split, at most a
            tenth of it.

    Raises:
        ValueError: A file is not as it should be, the pictures are not below the root, or a number
            is out of its range.
    """
    if num_val < 1:
        raise DataError(f"num_val is {num_val}, must be at least 1: a fit evaluates the val split")
    reader = MMEBReader(root, images_root, query_rewrites, candidate_rewrites)
    if not reader.images_root.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"images_root {reader.images_root} is not below {root}; move the pictures there"
        )
    names = subsets or [name for name in TRAIN_SUBSETS if any((root / name).glob(f"{style}-*"))]
    if not names:
        raise DataError(f"{root}: no <subset>/{style}-*.parquet is there; choose the root")
    given = [path for path in (query_rewrites, candidate_rewrites, rationales) if path]
    hashes = [reader.hash_files(name, style) for name in names] + [hash_file(p) for p in given]
    images = reader.images_root.resolve().relative_to(root.resolve())
    options = [_FORMAT_VERSION, style, names, num_val, images.as_posix()]
    options += [query_rewrites is None, candidate_rewrites is None]
    folder = _TreeFolder(root, hashlib.sha256(repr((options, hashes)).encode()).hexdigest())
    layout = Layout(root, _ORACLE_FOLDER)
    parts = {
        name: SubsetRows(name, reader.read_train(name, style), num_val, images)
        for name in track(names, "reading")
    }
    for part in track(parts.values(), "writing"):
        for path, lines in part.list_files(layout):
            folder.write(path, lines)
    pool = (line for part in parts.values() for line in part.iterate_candidates())
    folder.write(layout.union_pool("train"), pool)
    folder.write(layout.instructions, [_HEADER])
    if rationales is not None:
        _write_rationales(rationales, parts, layout, folder)
    num_pairs = sum(len(part.pairs) for part in parts.values())
    Console().print(f"{root}: {num_pairs} pairs of {len(parts)} subsets, in M-BEIR's layout")


class _TreeFolder:
    """Writes the files that are not there yet, and removes those of other options.

    Args:
        root: Root of the tree.
        key: Digest of all that the files depend on.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.root, self.key = root, key
        self._manifest = root / _MANIFEST
        found = json.loads(self._manifest.read_text()) if self._manifest.exists() else {}
        self._files: list[str] = found.get("files", [])
        if found.get("key") != key:
            for name in self._files:
                (root / name).unlink(missing_ok=True)
            self._files = []

    def write(self, path: Path, lines: Iterable[str]) -> None:
        """Write a file, unless it is there."""
        if self.has(path):
            return
        with replace_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        self.add([path])

    def has(self, path: Path) -> bool:
        """Return whether a file of this key is there."""
        return path.relative_to(self.root).as_posix() in self._files and path.exists()

    def has_any(self, name: str) -> bool:
        """Return whether files of this key are in a folder."""
        return any(Path(file).parent == Path(name) for file in self._files)

    def add(self, paths: Iterable[Path]) -> None:
        """Note that files are there."""
        self._files += [path.relative_to(self.root).as_posix() for path in paths]
        write_whole(self._manifest, json.dumps({"key": self.key, "files": self._files}) + "\n")


def _write_rationales(
    source: Path, parts: Mapping[str, SubsetRows], layout: Layout, folder: _TreeFolder
) -> None:
    """Write the rationale rows of each subset and split, under the ids of their queries."""
    if folder.has_any(layout.rationale_folder):
        return
    files: dict[Path, IO[str]] = {}
    with ExitStack() as stack:
        for row in read_rows(source):
            part, place = _find_pair(row, parts)
            query = part.pairs[place].query
            numbered = {"qid": part.number_query(query.query_id), "task_id": query.task_id}
            fields = {"difficulty": -1, "source": "oracle", **row.fields, **numbered}
            rationale = parse_rationale(Row(fields, row.path, row.line))
            path = layout.rationales(part.dataset, "val" if place in part.val_rows else "train")
            if path not in files:
                partial = stack.enter_context(replace_whole(path))
                files[path] = stack.enter_context(partial.open("w", encoding="utf-8"))
            files[path].write(json.dumps(rationale.format_fields(), ensure_ascii=False) + "\n")
    folder.add(files)


def _find_pair(row: Row, parts: Mapping[str, SubsetRows]) -> tuple[SubsetRows, int]:
    """Return the subset of a rationale row, and the place of its pair there."""
    name, _, number = str(row.require("qid")).rpartition(":")
    if name not in parts:
        raise row.error(f"qid {row.fields['qid']!r} is not SUBSET:ROW with one of {list(parts)}")
    if not number.isdecimal() or not 1 <= int(number) <= len(parts[name].pairs):
        raise row.error(f"row {number!r} of {name} is not in 1 .. {len(parts[name].pairs)}")
    return parts[name], int(number) - 1
