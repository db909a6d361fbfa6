"""Where the files of an M-BEIR tree are."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from tracelib.data.jsonl import DataError
from tracelib.retrieval.columns import MBEIR_COLUMNS, canonical_place

CANONICAL_COLUMNS = MBEIR_COLUMNS
"""The 16 columns of M-BEIR in the order of every published table."""
DATASET_NAMES = (
    "visualnews",
    "fashion200k",
    "webqa",
    "edis",
    "nights",
    "oven",
    "infoseek",
    "fashioniq",
    "cirr",
    "mscoco",
)
"""M-BEIR's data sets as file names have them; a data set's id is its place."""

RATIONALE_FOLDER = "rationales"
"""Where rationale rows are, unless other ones are asked for."""


def needs_split_pool(column: str) -> bool:
    """Return whether val and test have pools of their own: MSCOCO's differ, so names tell them.

    >>> needs_split_pool("mscoco_task0"), needs_split_pool("cirr_task7")
    (True, False)
    """
    return column.startswith("mscoco_")


def name_root(root: Path) -> str:
    """Return a folder name for one data root among others: its name and its path's digest."""
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()
    return f"{root.resolve().name}-{digest[:8]}"


@dataclass(frozen=True)
class Layout:
    """The paths of an M-BEIR tree. A stem is a column in val and test, and a data set in train.

    Args:
        root: Folder that holds `query`, `cand_pool`, `qrels`, `instructions` and the pictures.
        rationale_folder: Folder below the root that holds the rationale rows.
    """

    root: Path
    rationale_folder: str = RATIONALE_FOLDER

    @property
    def instructions(self) -> Path:
        """The table of instructions."""
        return self.root / "instructions" / "query_instructions.tsv"

    @property
    def union_up_queries(self) -> Path:
        """The train queries of all data sets in one file, those of small ones repeated."""
        return self.root / "query" / "union_train" / "mbeir_union_up_train.jsonl"

    @property
    def union_val_queries(self) -> Path:
        """The val queries of all columns in one file."""
        return self.root / "query" / "union_val" / "mbeir_union_val.jsonl"

    def query(self, stem: str, split: str) -> Path:
        """Return the query file of a stem."""
        return self.root / "query" / split / f"mbeir_{stem}_{split}.jsonl"

    def qrels(self, stem: str, split: str) -> Path:
        """Return the qrels file of a stem."""
        return self.root / "qrels" / split / f"mbeir_{stem}_{split}_qrels.txt"

    def pool(self, column: str, split: str | None = None) -> Path:
        """Return the local pool of a column, or of one split where pools differ by split."""
        key = column if split is None else f"{column}_{split}"
        return self.root / "cand_pool" / "local" / f"mbeir_{key}_cand_pool.jsonl"

    def union_pool(self, split: str) -> Path:
        """Return the union pool of a split."""
        return self.root / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl"

    def rationales(self, dataset: str, split: str) -> Path:
        """Return the rationale rows of a data set, as JSON Lines."""
        return self.root / self.rationale_folder / f"mbeir_{dataset}_{split}_rationales.jsonl"

    def parquet_rationales(self, dataset: str, split: str) -> Path:
        """Return the rationale rows of a data set, as Parquet."""
        return self.rationales(dataset, split).with_suffix(".parquet")

    def find_rationales(self, split: str, dataset: str = "*") -> list[Path]:
        """Return the rationale files of a split that are there, sorted; of one data set, or all.

        Raises:
            DataError: A data set has both forms.
        """
        pattern = self.rationales(dataset, split)
        lines = sorted(pattern.parent.glob(pattern.name))
        tables = sorted(pattern.parent.glob(pattern.with_suffix(".parquet").name))
        for path in lines:
            if (twin := path.with_suffix(".parquet")) in tables:
                raise DataError(f"{path} and {twin.name} are both there; remove one of them")
        return sorted([*lines, *tables])

    def check_rationale_folder(self) -> None:
        """Check that the folder of rationales is below the root, and there if it is not the usual.

        Raises:
            DataError: It is not.
        """
        name = self.rationale_folder
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{name!r} is no folder below {self.root} (data.rationale_folder)")
        if name != RATIONALE_FOLDER and not (self.root / name).is_dir():
            raise DataError(
                f"{self.root / name}: no such folder of rationales (data.rationale_folder); "
                "make scenes adds the one of Scenes"
            )

    def find_pool(self, column: str, split: str) -> Path:
        """Return the local pool to use: that of the split where there is or must be one."""
        path = self.pool(column, split)
        return path if needs_split_pool(column) or path.exists() else self.pool(column)

    def find_stems(self, split: str) -> list[str]:
        """Return the stems that have a query file, M-BEIR's columns first in canonical order.

        Raises:
            DataError: There is none.
        """
        stem_pattern = ".+" if split == "train" else r".+_task\d"
        pattern = rf"mbeir_({stem_pattern})_{re.escape(split)}"
        folder = self.root / "query" / split
        matches = (re.fullmatch(pattern, path.stem) for path in folder.glob("*.jsonl"))
        stems = [match[1] for match in matches if match]
        if not stems:
            stem = "<dataset>" if split == "train" else "<dataset>_task<id>"
            path = self.query(stem, split)
            raise DataError(f"{folder}: no query file {path.name} here; check data root and split")
        return sorted(stems, key=lambda stem: (canonical_place(stem), stem))
