"""One table of several gates and runs, from result rows."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from tracelib.retrieval.runs import ResultRow

_Cell = tuple[str, str, str]
_RECALLS = ("recall@1", "recall@5")
_COLUMNS: dict[str, tuple[_Cell, ...]] = {
    "easy R@1, 5": tuple(("local", "easy", recall) for recall in _RECALLS),
    "hard R@1, 5": tuple(("local", "hard", recall) for recall in _RECALLS),
    "all R@1, 5": tuple(("local", "all", recall) for recall in _RECALLS),
    "union R@5": (("union", "all", "recall@5"),),
    "think easy, hard": tuple(("local", subset, "think_rate") for subset in ("easy", "hard")),
    "tokens/query": (("local", "all", "tokens_per_query"),),
    "queries/s": (("local", "all", "queries_per_second"),),
}
"""Per heading the (pool, subset, metric) of its numbers."""


def build_table(rows: Sequence[ResultRow], style: box.Box = box.ROUNDED) -> Table:
    """Return one line per (run, gate): means over columns of recall and think rates, and speed.

    Recall is that of local pools unless the heading says union.
    """
    values = {
        (r.run, r.gate, r.pool, r.subset, r.metric): r.value for r in rows if r.column == "all"
    }
    table = Table("run", "gate", box=style)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for run, gate in dict.fromkeys((row.run, row.gate) for row in rows):
        texts = [
            ", ".join(_format_number(cell[2], values.get((run, gate, *cell))) for cell in cells)
            for cells in _COLUMNS.values()
        ]
        table.add_row(run, gate, *texts)
    return table


def render_markdown(rows: Sequence[ResultRow]) -> str:
    """Return the table in Markdown."""
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(build_table(rows, box.MARKDOWN))
    return "\n".join(line.strip() for line in buffer.getvalue().splitlines() if line.strip()) + "\n"


def _format_number(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric == "queries_per_second":
        return f"{value:,.0f}"
    return f"{value:.1f}" if metric == "tokens_per_query" else f"{value:.3f}"
