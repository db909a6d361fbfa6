"""Tables, bars and names as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tracelib.construction.report.shown_text import clean_text
from tracelib.construction.report.tally import Tally, choose_bins

_BAR = 30
_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~])")
_MAX_NAME = 80


def format_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], num_texts: int = 1
) -> str:
    r"""Return a Markdown table.

    Args:
        headings: Names of the columns.
        rows: Cells of each row.
        num_texts: Columns of text, the first ones; the others are numbers, aligned right.

    >>> print(format_table(("rule", "drops"), [("a|b", 1234)]))
    | rule | drops |
    |---|---:|
    | a\|b | 1,234 |
    """
    lines = [headings, *([_format_cell(cell) for cell in row] for row in rows)]
    ruler = "|" + "---|" * num_texts + "---:|" * (len(headings) - num_texts)
    written = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([written[0], ruler, *written[1:]])


def format_bars(every: Tally, kept: Tally) -> str:
    """Return a histogram as a Markdown table: bins, numbers of all and of the kept, and bars."""
    starts, width = choose_bins([every, kept])
    pairs = list(zip(every.split_bins(starts, width), kept.split_bins(starts, width), strict=True))
    most = max(bar.num_values for pair in pairs for bar in pair)
    rows = []
    for of_all, of_kept in pairs:
        name = f"{of_all.low:,}" if width == 1 else f"{of_all.low:,} to {of_all.high:,}"
        full, part = (round(_BAR * bar.num_values / most) for bar in (of_all, of_kept))
        rows.append((name, of_all.num_values, of_kept.num_values, "█" * part + "░" * (full - part)))
    table = format_table(("values", "all", "kept", "kept (█) of all (░)"), rows)
    return table.replace("|---|---:|---:|---:|", "|---|---:|---:|:---|")


def _format_cell(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else escape_markdown(str(cell))


def escape_markdown(text: str) -> str:
    """Return a text as one line of Markdown that means nothing but itself."""
    return _MARKS.sub(r"\\\1", " ".join(clean_text(text, _MAX_NAME).split()))
