"""The files of lines of an M-BEIR tree, told apart by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tracelib.data.check.findings import Finding, make_note
from tracelib.data.layout import Layout, needs_split_pool
from tracelib.data.records import TASK_MODALITIES
from tracelib.retrieval.columns import canonical_place

SourceKind = Literal["query", "pool", "union_pool", "qrels", "rationales"]
_NAMES: tuple[tuple[SourceKind, str], ...] = (
    ("query", r"query/(?P<split>train)/mbeir_(?P<stem>.+)_train\.jsonl"),
    ("query", r"query/union_(?P<split>train|val)/mbeir_(?P<stem>union.*)_(?P=split)\.jsonl"),
    ("query", r"query/(?P<split>val|test)/mbeir_(?P<stem>.+_task\d)_(?P=split)\.jsonl"),
    (
        "pool",
        r"cand_pool/local/mbeir_(?P<stem>.+_task\d)(?:_(?P<split>val|test))?_cand_pool\.jsonl",
    ),
    (
        "union_pool",
        r"cand_pool/global/mbeir_(?P<stem>union)_(?P<split>train|val|test)_cand_pool\.jsonl",
    ),
    ("qrels", r"qrels/(?P<split>train)/mbeir_(?P<stem>.+)_train_qrels\.txt"),
    ("qrels", r"qrels/(?P<split>val|test)/mbeir_(?P<stem>.+_task\d)_(?P=split)_qrels\.txt"),
    ("rationales", r"rationales/mbeir_(?P<stem>.+)_(?P<split>train|val|test)_rationales\.jsonl"),
)
_FOLDERS = ("query", "cand_pool", "qrels", "rationales")


@dataclass(frozen=True)
class Source:
    """A file of queries, candidates, qrels or rationale rows.

    Args:
        kind: What its lines are.
        name: Path relative to the data root.
        stem: Column in val and test, data set in train and for rationales; `union...` for files
            that join them.
        split: `train`, `val`, `test`; None for a pool that val and test share.
    """

    kind: SourceKind
    name: str
    stem: str
    split: str | None

    @property
    def dataset(self) -> str:
        """Data set in the name."""
        return self.stem.rpartition("_task")[0] or self.stem

    @property
    def task_id(self) -> int | None:
        """Task in the name, or None."""
        digits = self.stem.rpartition("_task")[2]
        return int(digits) if digits != self.stem and digits.isdecimal() else None

    @property
    def is_union(self) -> bool:
        """Whether it joins the queries of all data sets; up-sampled ones repeat."""
        return self.kind == "query" and self.stem.startswith("union")


def find_sources(root: Path) -> tuple[list[Source], list[Finding]]:
    """Return the files of a tree, columns in canonical order, and what is wrong with the set.

    A file of a task that does not exist is named and left out.
    """
    sources: list[Source] = []
    findings: list[Finding] = []
    paths = (path for folder in _FOLDERS for path in (root / folder).rglob("*") if path.is_file())
    for name in sorted(path.relative_to(root).as_posix() for path in paths):
        source = _recognise(name)
        if source is None:
            message = "not looked at: no file of M-BEIR has such a name in this folder"
            findings.append(make_note("file", name, None, message))
        elif source.task_id is not None and source.task_id not in TASK_MODALITIES:
            message = f"task {source.task_id} does not exist; tasks are {list(TASK_MODALITIES)}"
            findings.append(Finding("file", name, None, message))
        else:
            sources.append(source)
    sources.sort(key=lambda source: (canonical_place(source.stem), source.name))
    return sources, [*findings, *_find_missing(root, sources)]


def _recognise(name: str) -> Source | None:
    for kind, pattern in _NAMES:
        if match := re.fullmatch(pattern, name):
            return Source(kind, name, match["stem"], match["split"])
    return None


def _find_missing(root: Path, sources: list[Source]) -> Iterator[Finding]:
    """Yield the files that others need and that are not there, and pools without their split."""
    layout = Layout(root)
    needed = {layout.instructions: "it holds the instructions"}
    queries = [source for source in sources if source.kind == "query"]
    if not queries:
        message = f"{root / 'query'} holds no query file; check the data root"
        yield Finding("file", "query", None, message)
    for source in queries:
        split = source.split or ""
        if split == "train":
            needed[layout.union_pool(split)] = f"it is the pool of {source.name}"
        elif not source.is_union:
            needed[layout.find_pool(source.stem, split)] = f"it is the pool of {source.name}"
            needed[layout.qrels(source.stem, split)] = f"it holds the qrels of {source.name}"
    names = {source.name for source in sources}
    for path, reason in needed.items():
        name = path.relative_to(root).as_posix()
        if name not in names and not path.is_file():
            yield Finding("file", name, None, f"the file is missing; {reason}")
    for source in sources:
        if source.kind == "pool" and source.split is None and needs_split_pool(source.stem):
            expected = [layout.pool(source.stem, split).name for split in ("val", "test")]
            message = f"pools of {source.dataset} differ by split: they are named {expected}"
            yield Finding("file", source.name, None, message)
