"""The `download` verb: M-BEIR and rationale rows from the Hugging Face hub, by their file names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from tracelib.data.download.archive import PICTURES, read_note, unpack_pictures
from tracelib.data.download.hub import (
    CheckedFiles,
    DownloadError,
    HubFile,
    fetch_file,
    find_difference,
    list_files,
)
from tracelib.data.download.plan import (
    DownloadPlan,
    Split,
    check_columns,
    find_parts,
    find_rationales,
    list_paths,
    plan_download,
)

_TABLE_WIDTH = 110


def download(
    root: Path,
    columns: list[str] | None = None,
    splits: list[Split] | None = None,
    records: bool = True,
    images: bool = True,
    union_queries: bool = False,
    union_pools: bool = True,
    rationales: str | None = None,
    repository: str = "TIGER-Lab/M-BEIR",
    revision: str = "main",
    rationales_revision: str = "main",
    keep_archives: bool = False,
    allow_missing: bool = False,
    dry_run: bool = False,
) -> None:
    """Fetch M-BEIR, or a part of it, and rationale rows from the Hugging Face hub.

    A download that was stopped goes on where it stopped. A file gets its name when its checksum is
    right. HF_ENDPOINT, HF_TOKEN and proxies work as in huggingface_hub.

    Args:
        root: Folder to become the data root; it is made when missing.
        columns: Columns to fetch, without blanks, e.g. `[cirr_task7,nights_task4]`; default all 16.
            A train file holds all tasks of its data set.
        splits: Any of train, val and test, e.g. `[val,test]`; default all.
        records: Fetch queries, pools, qrels and instructions.
        images: Fetch and unpack the archive of all pictures, 170 GB whatever the columns.
        union_queries: Fetch the union query files too, of train (up-sampled) and val.
        union_pools: Fetch the union pools of val (48 MB) and test (2.43 GB) too, whatever the
            columns; that of train, its only pool, always comes with it.
        rationales: Repository, `owner/name`, of rationale rows in files
            `rationales/mbeir_<dataset>_<split>_rationales.jsonl`.
        repository: Repository of M-BEIR.
        revision: Its branch, tag or commit.
        rationales_revision: Branch, tag or commit of the repository of rationale rows.
        keep_archives: Keep the parts of the archive after unpacking; a later call without this
            removes them.
        allow_missing: Go on without documented files that the repository lacks; they are named.
        dry_run: Show what would be fetched and the disk needed, and write nothing.

    Raises:
        DownloadError: A column is unknown, nothing is chosen, a file is not on the hub or differs
            from the one there, the disk is too small, or the hub refuses.
    """
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, _TABLE_WIDTH)
    columns = check_columns(columns)
    splits = list(get_args(Split)) if splits is None else splits
    if not (records or images or rationales):
        raise DownloadError("nothing to fetch: take --records true, --images true or --rationales")
    files: list[HubFile] = []
    parts: list[HubFile] = []
    if records or images:
        listed = list_files(repository, revision)
        paths = list_paths(columns, splits, union_queries, union_pools) if records else []
        _report_missing([path for path in paths if path not in listed], allow_missing, console)
        files += [listed[path] for path in paths if path in listed]
        parts = find_parts(repository, listed) if images else []
    if rationales is not None:
        listed = list_files(rationales, rationales_revision)
        files += find_rationales(rationales, listed, columns, splits)
    plan = plan_download(files, parts, root)
    _show(plan, console)
    if dry_run:
        return
    plan.check()
    lock = root / ".tracelib" / "download.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            _fetch(plan, console)
            _unpack(plan, keep_archives, console)
    except Timeout:
        raise DownloadError(f"{root}: another download is at work here; wait for it") from None
    noun = "file" if len(plan.files) == 1 else "files"
    console.print(f"{root} is complete: {len(plan.files)} {noun}, checksums right", soft_wrap=True)


def _report_missing(missing: Sequence[str], allow_missing: bool, console: Console) -> None:
    """Name the documented files that the hub lacks.

    Raises:
        DownloadError: There are some, and that is not allowed.
    """
    if not missing:
        return
    noun = "file" if len(missing) == 1 else "files"
    message = f"the hub lacks {len(missing)} documented {noun}: {', '.join(missing)}"
    if not allow_missing:
        raise DownloadError(f"{message}; name another revision, or go on (--allow_missing true)")
    console.print(message, style="yellow", soft_wrap=True)


def _show(plan: DownloadPlan, console: Console) -> None:
    """Print the files and the disk they need."""
    table = Table("file", "size", "state", title=str(plan.root))
    table.columns[1].justify = "right"
    sources: dict[str, None] = {}
    for planned in plan.files:
        file = planned.file
        share = f" {planned.num_bytes / file.size:.0%}" if planned.state == "begun" else ""
        table.add_row(file.path, decimal(file.size), f"{planned.state}{share}")
        sources[f"{file.repository} at commit {file.commit}"] = None
    table.caption = "\n".join(sources)
    console.print(table)
    needed, free = plan.num_disk_bytes, plan.num_free_bytes
    console.print(
        f"{len(plan.files)} files, {decimal(sum(p.file.size for p in plan.files))}; to fetch "
        f"{decimal(plan.num_fetch_bytes)}, then to unpack about {decimal(plan.num_unpack_bytes)}; "
        f"disk needed {decimal(needed)} (the archive is not joined on disk), free {decimal(free)}",
        style="red" if needed > free else None,
        soft_wrap=True,
    )


def _fetch(plan: DownloadPlan, console: Console) -> None:
    """Fetch and check the files that are not there.

    Raises:
        DownloadError: The hub refuses, or a checksum is wrong.
    """
    checked = CheckedFiles(plan.root)
    todo = [p for p in plan.files if p.state not in ("there", "unpacked")]
    total = sum(p.file.size for p in todo)
    with _build_progress(console) as progress:
        fetching = progress.add_task("fetch", total=total, completed=sum(p.num_bytes for p in todo))
        checking = progress.add_task("check", total=total)
        advance, advance_check = (partial(progress.advance, task) for task in (fetching, checking))
        for planned in todo:
            file = planned.file
            if planned.state != "unchecked":
                fetch_file(file, plan.root, advance, advance_check)
            elif wrong := find_difference(file, plan.root / file.path, advance_check):
                raise DownloadError(f"{wrong}; move it away to fetch that")
            checked.add(file)
            progress.console.print(f"{file.path}: {decimal(file.size)}, checksum right")


def _unpack(plan: DownloadPlan, keep_archives: bool, console: Console) -> None:
    """Unpack the pictures where they are not, then remove the parts of their archive.

    Raises:
        DownloadError: The archive is broken or unsafe.
    """
    if not plan.parts:
        return
    paths = [plan.root / part.path for part in plan.parts]
    checksums = [part.checksum for part in plan.parts]
    if not read_note(plan.root, checksums).is_complete:
        with _build_progress(console) as progress:
            task = progress.add_task(f"unpack {PICTURES}", total=sum(p.size for p in plan.parts))
            unpack_pictures(paths, checksums, plan.root, partial(progress.advance, task))
    if not keep_archives:
        for path in paths:
            path.unlink(missing_ok=True)  # a call that was killed may have removed it


def _build_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
