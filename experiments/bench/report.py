"""What the benches leave: tidy rows on screen, and as JSON with provenance beside the scripts."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tracelib.retrieval.runs import collect_provenance

Row = dict[str, Any]
"""`bench`, `metric`, `value`, `against` (a limit such as `<= 0.5`, or a name) and `device`."""

_FOLDER = Path(__file__).parent
_LIMIT = re.compile(r"(<=|>=) ([0-9.]+)")


def describe_device() -> str:
    """Return the CPU's model and how many cores this process may use."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def make_row(bench: str, metric: str, value: float, against: str) -> Row:
    """Return one tidy row, measured on this machine.

    Raises:
        ValueError: The value is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{bench}/{metric} is {value}: the measurement failed")
    return {
        "bench": bench,
        "metric": metric,
        "value": value,
        "against": against,
        "device": describe_device(),
    }


def is_within(value: float, against: str) -> bool | None:
    """Return whether a value keeps its limit; None where `against` states none.

    >>> is_within(0.4, "<= 0.5"), is_within(0.4, ">= 0.5"), is_within(0.4, "FAISS flat")
    (True, False, None)
    """
    if not (limit := _LIMIT.fullmatch(against)):
        return None
    return value <= float(limit[2]) if limit[1] == "<=" else value >= float(limit[2])


def print_rows(rows: Sequence[Row]) -> None:
    """Print rows as a table, with whether each keeps its limit."""
    table = Table("bench", "metric", "value", "against", "kept", title=rows[0]["device"])
    for row in rows:
        kept = {None: "", True: "yes", False: "NO"}[is_within(row["value"], row["against"])]
        table.add_row(row["bench"], row["metric"], f"{row['value']:,.4g}", row["against"], kept)
    Console().print(table)


def write_rows(name: str, rows: Sequence[Row], config: Mapping[str, Any]) -> Path:
    """Write rows and their provenance to `<name>.json` beside this file, whole or not at all.

    Args:
        name: Name of the bench.
        rows: Its rows.
        config: What it was run with, e.g. the sizes.
    """
    provenance = collect_provenance(config, data_hashes={}, prompt_policy="fixed", dtype="float32")
    for unused in ("data_hashes", "prompt_policy", "dtype"):
        del provenance[unused]
    path = _FOLDER / f"{name}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        content = {"provenance": provenance, "rows": list(rows)}
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
