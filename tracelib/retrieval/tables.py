"""One table of several gates and runs, from result rows."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from tracelib.retrieval.runs import ResultRow

_CELLS: tuple[tuple[str, str, str, str], ...] = (
    ("easy R@1", "local", "easy", "recall@1"),
    ("easy R@5", "local", "easy", "recall@5"),
    ("hard R@1", "local", "hard", "recall@1"),
    ("hard R@5", "local", "hard", "recall@5"),
    ("all R@1", "local", "all", "recall@1"),
    ("all R@5", "local", "all", "recall@5"),
    ("union R@5", "union", "all", "recall@5"),
    ("easy think", "local", "easy", "think_rate"),
    ("hard think", "local", "hard", "think_rate"),
    ("tokens/query", "local", "all", "tokens_per_query"),
    ("queries/s", "local", "all", "queries_per_second"),
)


def build_table(rows: Sequence[ResultRow], style: box.Box = box.ROUNDED) -> Table:
    """Return one line per (run, gate): means over columns of recall and think rates, and speed.

    Recall is that of local pools unless the heading says union.
    """
    values = {
        (r.run, r.gate, r.pool, r.subset, r.metric): r.value for r in rows if r.column == "all"
    }
    table = Table("run", "gate", box=style)
    for heading, *_ in _CELLS:
        table.add_column(heading, justify="right")
    for run, gate in dict.fromkeys((row.run, row.gate) for row in rows):
        found = [
            (metric, values.get((run, gate, pool, subset, metric)))
            for _, pool, subset, metric in _CELLS
        ]
        table.add_row(run, gate, *(_format_cell(metric, value) for metric, value in found))
    return table


def render_markdown(rows: Sequence[ResultRow]) -> str:
    """Return the table in Markdown."""
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(build_table(rows, box.MARKDOWN))
    return "\n".join(line.strip() for line in buffer.getvalue().splitlines() if line.strip()) + "\n"


def _format_cell(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric == "queries_per_second":
        return f"{value:,.0f}"
    return f"{value:.1f}" if metric == "tokens_per_query" else f"{value:.3f}"
