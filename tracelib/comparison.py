"""The `compare` verb: two evaluations query by query, with how sure one may be of a difference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from tracelib.retrieval.differences import POOLS, Difference, check_metric, compare_queries
from tracelib.retrieval.evaluation import HEADLINE
from tracelib.retrieval.per_query import PerQuery, read_per_query
from tracelib.retrieval.protocol import Protocol
from tracelib.retrieval.runs import ResultRow, read_results
from tracelib.retrieval.whole_files import write_whole

_TABLE_WIDTH = 120
_SPEEDS = ("think_rate", "tokens_per_query", "queries_per_second")


@dataclass(frozen=True)
class _Evaluated:
    """One gate of an evaluated run, as it lies in a folder."""

    folder: Path
    rows: list[ResultRow]
    provenance: dict[str, Any]
    queries: PerQuery

    def describe(self) -> dict[str, Any]:
        """Return what names the evaluation, and what may differ between two that are compared."""
        found: dict[str, Any] = {"run": self.rows[0].run, "gate": self.rows[0].gate}
        found |= {key: self.provenance.get(key) for key in ("git_revision", "dtype")}
        means = {r.metric: r.value for r in self.rows if r.column == r.subset == "all"}
        return found | {metric: means.get(metric) for metric in _SPEEDS}


def compare(
    run_a: Path,
    run_b: Path,
    gate_a: str | None = None,
    gate_b: str | None = None,
    split: Literal["val", "test"] = "test",
    metric: str = HEADLINE,
    seed: int = 0,
    num_resamples: int = 10_000,
    json_file: Path | None = None,
) -> None:
    """Compare two evaluated runs query by query, and print what differs and how surely.

    Per column and pool: both numbers, B - A with its 95 % bootstrap interval over queries, and a
    two-sided sign-flip p-value, not corrected for the number of columns; below them the same of the
    mean over columns, which are kept as they are. Also how often both think, and their speed.

    Args:
        run_a: Folder of an evaluated run, or of one gate in it, e.g. RUN/evaluation/never.
        run_b: The other run, likewise; differences are B - A.
        gate_a: Gate of A to compare; default is the only one evaluated, or that of A's recipe.
        gate_b: Gate of B to compare, likewise.
        split: Split that was evaluated; the folder of one gate is taken as it is.
        metric: `headline` (recall at M-BEIR's k of each column), `recall@k` or `mrr`.
        seed: Seed of what is resampled.
        num_resamples: Resamples for the interval, and sign flips for the p-value.
        json_file: Where to write the numbers as JSON.

    Raises:
        ValueError: A folder holds no evaluation, the two are not comparable (files, prompts, k,
            split, queries; each is named), or the metric is unknown.
    """
    a, b = _load(run_a, gate_a, split, "gate_a"), _load(run_b, gate_b, split, "gate_b")
    protocols = [Protocol.from_provenance(side.provenance) for side in (a, b)]
    if found := protocols[0].find_differences(protocols[1]):
        lines = "\n  ".join(found)
        raise ValueError(f"{a.folder} (A) and {b.folder} (B) cannot be compared:\n  {lines}")
    check_metric(metric, protocols[0].search_depth)
    differences = compare_queries(a.queries, b.queries, metric, num_resamples, seed)
    _print(Console(), a, b, metric, differences)
    if json_file is not None:
        settings = {"metric": metric, "seed": seed, "num_resamples": num_resamples}
        content = settings | {
            "a": a.describe(),
            "b": b.describe(),
            "protocol": protocols[0].to_provenance(),
            "rows": [dataclasses.asdict(row) for row in differences],
        }
        write_whole(json_file, json.dumps(content, indent=1) + "\n")


def _load(path: Path, gate: str | None, split: str, option: str) -> _Evaluated:
    """Read one gate of an evaluation, whichever of the two kinds of folder is named."""
    folder = path if (path / "per_query.parquet").exists() else None
    if folder is None:
        base = path / ("evaluation" if split == "test" else f"evaluation_{split}")
        gates = {found.parent.name: found.parent for found in base.glob("*/per_query.parquet")}
        if not gates:
            raise ValueError(
                f"{base} holds no evaluation: run python -m tracelib evaluate --run {path} "
                f"--split {split}"
            )
        chosen = gate or _choose_gate(base, gates, option)
        if chosen not in gates:
            raise ValueError(f"{base} has gates {sorted(gates)}, not {chosen!r}; set --{option}")
        folder = gates[chosen]
    elif gate not in (None, folder.name):
        raise ValueError(f"{folder} is of another gate than --{option} {gate}; leave one out")
    rows, provenance = read_results(folder / "results.json")
    if len({(row.run, row.gate) for row in rows}) != 1:
        raise ValueError(f"{folder}/results.json holds no row, or several runs or gates")
    return _Evaluated(folder, rows, provenance, read_per_query(folder / "per_query.parquet"))


def _choose_gate(base: Path, gates: Collection[str], option: str) -> str:
    """Return the only gate, or else that of the recipe, which the run's own results name."""
    if len(gates) == 1:
        return next(iter(gates))
    if not (base / "results.json").exists():
        raise ValueError(f"{base} has gates {sorted(gates)}; choose one by --{option}")
    return str(read_results(base / "results.json")[1].get("gate"))


def _print(
    console: Console, a: _Evaluated, b: _Evaluated, metric: str, differences: list[Difference]
) -> None:
    console.width = max(console.width, _TABLE_WIDTH)
    speeds = Table("", "run", "gate", "think rate", "tokens/query", "queries/s", "dtype")
    for letter, side in (("A", a), ("B", b)):
        facts = side.describe()
        numbers = ["-" if facts[m] is None else f"{facts[m]:,.3f}" for m in _SPEEDS]
        speeds.add_row(letter, facts["run"], facts["gate"], *numbers, str(facts["dtype"]))
    console.print(speeds)
    headings = ("column", "queries", "A", "B", "B - A", "95 % interval", "p", "think A", "think B")
    for pool in POOLS:
        table = Table(*headings, title=f"{metric}, {pool} pool")
        for row in (row for row in differences if row.pool == pool):
            if is_mean := row.column == "all":
                table.add_section()
            table.add_row(
                "mean over columns" if is_mean else row.column,
                f"{row.num_queries:,}",
                f"{row.value_a:.4f}",
                f"{row.value_b:.4f}",
                f"{row.difference:+.4f}",
                f"{row.low:+.4f} .. {row.high:+.4f}",
                f"{row.p_value:.4f}",
                f"{row.think_rate_a:.3f}",
                f"{row.think_rate_b:.3f}",
            )
        console.print(table)
