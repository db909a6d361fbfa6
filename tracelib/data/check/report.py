"""The report of a check: a table of columns, faults by kind, and JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tracelib.data.check.columns import ColumnCounts
from tracelib.data.check.findings import Finding, format_count
from tracelib.data.check.pictures import PictureCounts, PictureMode
from tracelib.retrieval.whole_files import write_whole


@dataclass(frozen=True)
class Report:
    """All that a check found.

    Args:
        root: Data root.
        columns: Counts of every column.
        faults: What must be mended, by kind, file and line.
        notes: What is good to know.
        num_lines: Lines read.
        picture_mode: How pictures were looked at.
        pictures: How many were.
        seconds: Wall time.
    """

    root: Path
    columns: list[ColumnCounts]
    faults: list[Finding]
    notes: list[Finding]
    num_lines: int
    picture_mode: PictureMode
    pictures: PictureCounts
    seconds: float


def write_report(path: Path, report: Report) -> None:
    """Write the report as JSON, whole or not at all."""
    content = {
        "root": str(report.root),
        "num_faults": len(report.faults),
        "num_notes": len(report.notes),
        "num_lines": report.num_lines,
        "picture_mode": report.picture_mode,
        **dataclasses.asdict(report.pictures),
        "seconds": round(report.seconds, 3),
        "columns": [_describe_column(row) for row in report.columns],
        "faults": [_describe(finding) for finding in report.faults],
        "notes": [_describe(finding) for finding in report.notes],
    }
    write_whole(path, json.dumps(content, indent=1))


def print_report(console: Console, report: Report, num_shown: int, json_file: Path) -> None:
    """Print the table, the notes, and of each kind the first `num_shown` faults."""
    if report.columns:
        console.print(_build_table(report.columns))
    _print_group(console, "note", report.notes, num_shown)
    for kind, group in itertools.groupby(report.faults, key=lambda finding: finding.kind):
        _print_group(console, f"{kind} fault", list(group), num_shown)
    pictures = report.pictures
    looked = (
        ""
        if report.picture_mode == "none"
        else (
            f", {format_count(pictures.num_pictures, 'picture')} "
            f"({pictures.num_remembered:,} known to be fine from an earlier run)"
        )
    )
    verdict = format_count(len(report.faults), "fault") if report.faults else "no fault"
    _print_line(
        console,
        f"{report.root}: {verdict} in {format_count(report.num_lines, 'line')}{looked}, "
        f"{report.seconds:.1f} s; everything is in {json_file}",
    )


def _print_group(console: Console, title: str, group: list[Finding], num_shown: int) -> None:
    if not group:
        return
    _print_line(console, f"{format_count(len(group), title)}:")
    for finding in group[:num_shown]:
        _print_line(console, f"  {finding.place}: {finding.message}")
    if (num_hidden := len(group) - num_shown) > 0:
        _print_line(console, f"  ... and {num_hidden:,} more, all in the JSON file (--num_shown)")


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _build_table(columns: list[ColumnCounts]) -> Table:
    has_expected = any(row.expected for row in columns)
    table = Table(
        title="in parentheses: M-BEIR's own count, where this one differs" if has_expected else None
    )
    table.add_column("split")
    table.add_column("column", no_wrap=True)
    for name in ("queries", "pool", "qrels", "positives/query", "most", "in other pools"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in columns:
        expected = row.expected or (None,) * 4
        table.add_row(
            row.split,
            row.stem,
            _format_count(row.num_queries, expected[0]),
            _format_count(row.num_candidates, expected[1]),
            _format_count(row.num_qrels, expected[2]),
            f"{row.positives_per_query:.2f}",
            f"{row.max_positives:,}",
            _format_count(row.num_cross_pool, expected[3]),
        )
    return table


def _format_count(value: int | None, expected: int | None) -> str:
    if value is None:
        return "-" if expected is None else f"- ({expected:,})"
    return f"{value:,}" if expected in (None, value) else f"{value:,} ({expected:,})"


def _describe(finding: Finding) -> dict[str, Any]:
    return {name: value for name, value in finding._asdict().items() if name != "is_fault"}


def _describe_column(row: ColumnCounts) -> dict[str, Any]:
    expected = None if row.expected is None else row.expected._asdict()
    return {**dataclasses.asdict(row), "expected": expected}
