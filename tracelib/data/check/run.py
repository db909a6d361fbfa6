"""The `check` verb: every fault of an M-BEIR tree, by file and line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tracelib.data.check.columns import count_columns, note_small_pools
from tracelib.data.check.coverage import check_positives, check_qrels, check_rationales
from tracelib.data.check.findings import Finding
from tracelib.data.check.instruction_rows import check_instructions
from tracelib.data.check.picture_memory import PictureMemory
from tracelib.data.check.pictures import (
    PictureCounts,
    PictureMode,
    check_pictures,
    find_references,
)
from tracelib.data.check.report import Report, print_report, write_report
from tracelib.data.check.sources import find_sources
from tracelib.data.check.tree import Tree, find_broken_lines, scan_tree
from tracelib.data.check.uniqueness import check_union_pool, check_uniqueness
from tracelib.data.check.workers import open_workers
from tracelib.data.layout import name_root

_TABLE_WIDTH = 110


def check(
    root: Path,
    pictures: PictureMode = "decode",
    num_workers: int | None = None,
    fresh: bool = False,
    num_shown: int = 20,
    cache_dir: Path | None = None,
    json_file: Path | None = None,
) -> None:
    """Check an M-BEIR tree and name every fault by file and line.

    Lines: format, ids, modalities and tasks; then duplicates, qrels and positives against queries
    and pools, instructions, rationales, the union test pool, and pictures. A line with several
    faults is named by its first. A table shows the counts of every column, with M-BEIR's own beside
    them. Where pools of M-BEIR are not there, candidates that may be in them are noted, no faults.
    Pictures that are fine are remembered by path, size and time of change, so that a run that
    was stopped, even killed, goes on where it was.

    Args:
        root: Data root: a folder in M-BEIR's layout.
        pictures: `decode` reads every picture whole, `header` its format and size only (faster;
            does not find those that are cut short), `none` none.
        num_workers: Processes that read lines and pictures; null for one a core, 0 for none beside
            this one.
        fresh: Look at all pictures again.
        num_shown: Faults printed of each kind, and notes, at least 0; the JSON file has all.
        cache_dir: Where pictures that are fine are remembered, in a folder of this root; default is
            ROOT/.tracelib.
        json_file: The report; default is check/report.json where the pictures are remembered.

    Raises:
        FileNotFoundError: `root` is no folder.
        ValueError: A number is out of its range, or a folder to write in cannot be written.
        SystemExit: There are faults; the exit status is 1.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; name a data root (--root)")
    for name, number in (("num_workers", num_workers or 0), ("num_shown", num_shown)):
        if number < 0:
            raise ValueError(f"{name} is {number}, must be at least 0 (--{name})")
    start = time.perf_counter()
    folder = (root / ".tracelib" if cache_dir is None else cache_dir / name_root(root)) / "check"
    _make_writable(folder, "cache_dir")
    if json_file is None:
        json_file = folder / "report.json"
    _make_writable(json_file.parent, "json_file")
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    if num_workers is None:
        num_workers = os.cpu_count() or 1
    with open_workers(num_workers) as workers, _open_progress(console) as progress:
        tree, findings = _check_lines(root, workers, progress)
        counts = PictureCounts()
        if pictures != "none":
            memory = PictureMemory(folder / "fine_pictures.bin", fresh)
            found, counts = _check_pictures(tree, pictures, memory, workers, progress)
            findings += found
    columns = count_columns(tree)
    findings += note_small_pools(tree)
    findings.sort(key=lambda finding: (finding.kind, finding.file, finding.line or 0))
    report = Report(
        root=root,
        columns=columns,
        faults=[finding for finding in findings if finding.is_fault],
        notes=[finding for finding in findings if not finding.is_fault],
        num_lines=sum(len(table) for table in tree.tables.values()),
        picture_mode=pictures,
        pictures=counts,
        seconds=time.perf_counter() - start,
    )
    write_report(json_file, report)
    print_report(console, report, num_shown, json_file)
    if report.faults:
        raise SystemExit(1)


def _make_writable(folder: Path, option: str) -> None:
    """Make a folder; one that cannot be written fails now, not late.

    Raises:
        ValueError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}); name another --{option}") from None


def _open_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _check_lines(
    root: Path, workers: Executor | None, progress: Progress
) -> tuple[Tree, list[Finding]]:
    sources, findings = find_sources(root)
    num_bytes = sum((root / source.name).stat().st_size for source in sources)
    bar = progress.add_task("lines", total=num_bytes)
    tree = scan_tree(root, sources, workers, lambda done: progress.advance(bar, done))
    for found in _compare_files(tree):
        findings += found
    return tree, findings


def _compare_files(tree: Tree) -> Iterator[Iterator[Finding]]:
    yield find_broken_lines(tree)
    yield check_uniqueness(tree)
    yield check_union_pool(tree)
    yield check_qrels(tree)
    yield check_positives(tree)
    yield check_rationales(tree)
    yield check_instructions(tree)


def _check_pictures(
    tree: Tree,
    mode: PictureMode,
    memory: PictureMemory,
    workers: Executor | None,
    progress: Progress,
) -> tuple[list[Finding], PictureCounts]:
    references = find_references(tree)
    bar = progress.add_task("pictures", total=len(references))
    return check_pictures(
        tree.root, references, mode, memory, workers, lambda done: progress.advance(bar, done)
    )
