"""Reads MMEB v1 as it is on the hub: queries with their own candidates, and training pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
from numpy.typing import NDArray

from tracelib.data.jsonl import DataError
from tracelib.data.mmeb.files import find_files, open_table
from tracelib.data.mmeb.pairs import TrainPairs, list_candidates
from tracelib.data.mmeb.records import RecordIntake, SideCounts, build_candidate, build_query
from tracelib.data.mmeb.rewrites import Rewrite, load_rewrites
from tracelib.data.mmeb.subsets import GROUPS, TRAIN_SUBSETS
from tracelib.data.table_cache import hash_file
from tracelib.types import Candidate, Query, Side

_EVAL_COLUMNS = {
    "qry_text": False,
    "qry_img_path": False,
    "tgt_text": True,
    "tgt_img_path": True,
}
"""Each with whether it holds lists."""
_TRAIN_COLUMNS = dict.fromkeys(("qry", "qry_image_path", "pos_text", "pos_image_path"), False)
_NEGATIVE_COLUMNS = ("neg_text", "neg_image_path")


@dataclass(frozen=True, eq=False)
class MMEBSubset:
    """An evaluation subset.

    Args:
        name: Its name on the hub.
        queries: Queries, row by row; ids are `name:row`, rows from 1.
        candidates: Candidates, equal ones once, in the order of first sight.
        places: Places in `candidates` of every query's own candidates, the gold one first.
        offsets: `[Q + 1]` bounds in `places`: query i owns `offsets[i]` .. `offsets[i + 1]`.
        counts: What was met, per side.
    """

    name: str
    queries: list[Query]
    candidates: list[Candidate]
    places: NDArray[np.int64]
    offsets: NDArray[np.int64]
    counts: dict[Side, SideCounts]


class MMEBReader:
    """Reads MMEB's evaluation and training sets, strictly.

    Args:
        root: Folder with a folder per subset, as on the hub.
        images_root: Folder that picture paths are relative to and may not leave; None is
            `root`/images.
        query_rewrites: YAML file of the rewrites of queries; None rewrites nothing.
        candidate_rewrites: The same for candidates.
        cache_dir: Where Arrow files go; None is `root`/.tracelib.

    Raises:
        DataError: `root` is no folder, or a file of rewrites is wrong.
    """

    def __init__(
        self,
        root: Path,
        images_root: Path | None = None,
        query_rewrites: Path | None = None,
        candidate_rewrites: Path | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; choose another root")
        self.root, self.images_root = root, images_root or root / "images"
        self.cache_dir = (cache_dir or root / ".tracelib") / "mmeb"
        known = {*GROUPS["all"], *TRAIN_SUBSETS}
        files: dict[Side, Path | None] = {
            "query": query_rewrites,
            "candidate": candidate_rewrites,
        }
        self.rewrites: dict[Side, dict[str, Rewrite] | None] = {
            side: None if path is None else load_rewrites(path, known)
            for side, path in files.items()
        }

    def find_subsets(self) -> list[str]:
        """Return the evaluation subsets below the root, in the order of MMEB's table.

        Raises:
            DataError: There is none, or a folder with test rows has an unknown name.
        """
        found = {path.parent.name for path in self.root.glob("[!.]*/test-*")}
        for name in sorted(found):
            _check_name(name, GROUPS["all"])
        if not found:
            raise DataError(f"{self.root}: no <subset>/test-*.parquet is there; choose the root")
        return [name for name in GROUPS["all"] if name in found]

    def hash_files(self, subset: str, split: str) -> dict[str, str]:
        """Return the SHA-256 of each file of a subset's split, by path below the root.

        Raises:
            DataError: The subset is unknown, a file is missing, or they are of several formats.
        """
        _check_name(subset, GROUPS["all"] if split == "test" else TRAIN_SUBSETS)
        return {
            path.relative_to(self.root).as_posix(): hash_file(path)
            for path in find_files(self.root / subset, split)
        }

    def read_eval(self, subset: str) -> MMEBSubset:
        """Read an evaluation subset.

        Raises:
            DataError: The subset is unknown, a file is missing, or a row is not as it should be.
        """
        _check_name(subset, GROUPS["all"])
        intake = RecordIntake(self.images_root, self._choose_rewrites(subset))
        queries: list[Query] = []
        candidates: list[Candidate] = []
        places: list[int] = []
        offsets = [0]
        for path in find_files(self.root / subset, "test"):
            for row, where in open_table(path, _EVAL_COLUMNS, (), self.cache_dir).iterate():
                content = intake.read("query", row["qry_text"], row["qry_img_path"], where)
                for text, image_path in _pair_lists(row["tgt_text"], row["tgt_img_path"], where):
                    number, new = intake.number_candidate(text, image_path, where)
                    if new:
                        candidates.append(build_candidate(subset, number, new))
                    places.append(number - 1)
                gold = candidates[places[offsets[-1]]]
                queries.append(build_query(subset, len(queries) + 1, content, gold))
                offsets.append(len(places))
        return MMEBSubset(
            subset, queries, candidates, np.array(places), np.array(offsets), intake.counts
        )

    def read_train(
        self, subset: str, style: Literal["original", "diverse_instruction"]
    ) -> TrainPairs:
        """Open the training pairs of a subset: all rows are checked now, built when asked for.

        Args:
            subset: Name of a training subset.
            style: Whether instructions are the benchmark's own or varied.

        Raises:
            DataError: The subset is unknown, a file is missing, or a row is not as it should be.
        """
        _check_name(subset, TRAIN_SUBSETS)
        rewrites = self._choose_rewrites(subset)
        intake = RecordIntake(self.images_root, rewrites)
        numbers = []
        tables = [
            open_table(path, _TRAIN_COLUMNS, _NEGATIVE_COLUMNS, self.cache_dir)
            for path in find_files(self.root / subset, style)
        ]
        for table in tables:
            for row, where in table.iterate():
                intake.read("query", row["qry"], row["qry_image_path"], where)
                found = [
                    intake.number_candidate(*candidate, where)[0]
                    for candidate in list_candidates(row)
                ]
                numbers.append([*found, 0][:2])
        rows = datasets.concatenate_datasets([table.rows for table in tables])
        return TrainPairs(subset, rows, rewrites, np.array(numbers, np.int32), intake.counts)

    def _choose_rewrites(self, subset: str) -> dict[Side, Rewrite]:
        return {side: (given or {}).get(subset, Rewrite()) for side, given in self.rewrites.items()}


def _check_name(subset: str, known: Collection[str]) -> None:
    if subset not in known:
        raise DataError(f"subset {subset!r} is unknown; known are {', '.join(known)}")


def _pair_lists(
    texts: list[str] | None, image_paths: list[str] | None, where: str
) -> Iterator[tuple[str, str]]:
    counts = [len(values or ()) for values in (texts, image_paths)]
    if not texts or not image_paths or counts[0] != counts[1]:
        raise DataError(
            f"{where}: {counts[0]} texts in tgt_text and {counts[1]} paths in tgt_img_path; "
            "expected as many, at least one"
        )
    return zip(texts, image_paths, strict=True)
