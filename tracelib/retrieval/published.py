"""What others published on M-BEIR, to be shown beside a run.

Any-hit recall at each column's headline k on the test split, as fractions. UniIR and LamRA draw
prompts at random at evaluation, and TRACE says that it follows LamRA, so their numbers carry that
noise. pyserini's rows are UniIR's released checkpoints, always with the first prompt. How U-MARVEL,
ELVA and ARR choose prompts is not recorded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tracelib.retrieval.columns import MBEIR_COLUMNS
from tracelib.retrieval.evaluation import HEADLINE
from tracelib.retrieval.runs import ResultRow

_NOT_COMPARABLE = "No published numbers are shown: they are of M-BEIR's {}, and these are of {}.\n"


@dataclass(frozen=True)
class PublishedResult:
    """One system on one pool.

    Args:
        system: Name and backbone.
        pool: `local` or `union`, which papers call global.
        source: Who reports the numbers.
        values: Recall of the sixteen columns in M-BEIR's order; empty when only the mean is known.
        reported_mean: The mean where the columns are not known.
    """

    system: str
    pool: Literal["local", "union"]
    source: str
    values: tuple[float, ...] = ()
    reported_mean: float | None = None

    @property
    def mean(self) -> float | None:
        """The plain mean over columns."""
        return sum(self.values) / len(self.values) if self.values else self.reported_mean


_TRACE, _PYSERINI = "TRACE paper", "pyserini, released checkpoints"
_UNIIR, _LAMRA = "UniIR paper", "LamRA paper"
_UMARVEL, _ELVA, _ARR = "U-MARVEL README", "ELVA paper", "ARR paper"

PUBLISHED = (
    PublishedResult(
        "TRACE, Qwen2.5-VL-7B",
        "local",
        _TRACE,
        (
            *(0.421, 0.823, 0.305, 0.878, 0.641, 0.825, 0.412, 0.913),
            *(0.332, 0.336, 0.574, 0.558, 0.364, 0.573, 0.785, 0.671),
        ),
    ),
    PublishedResult(
        "UniIR CLIP-SF, large",
        "local",
        _PYSERINI,
        (
            *(0.4284, 0.8084, 0.1803, 0.8387, 0.5319, 0.7853, 0.4261, 0.9202),
            *(0.1810, 0.3175, 0.4600, 0.2723, 0.2455, 0.4532, 0.6888, 0.4906),
        ),
    ),
    PublishedResult(
        "UniIR BLIP-FF, large",
        "local",
        _PYSERINI,
        (
            *(0.2305, 0.7955, 0.2612, 0.7866, 0.5051, 0.7845, 0.2290, 0.9086),
            *(0.2849, 0.3189, 0.4261, 0.2354, 0.2944, 0.5034, 0.5625, 0.3057),
        ),
    ),
    PublishedResult("TRACE, Qwen2-VL-2B", "local", _TRACE, reported_mean=0.502),
    PublishedResult("TRACE, Qwen2-VL-7B", "local", _TRACE, reported_mean=0.556),
    PublishedResult("UniIR CLIP-SF", "local", _UNIIR, reported_mean=0.506),
    PublishedResult("UniIR BLIP-FF", "local", _UNIIR, reported_mean=0.468),
    PublishedResult("LamRA-Ret, Qwen2-VL-7B", "local", _LAMRA, reported_mean=0.566),
    PublishedResult("ELVA, 7B", "local", _ELVA, reported_mean=0.587),
    PublishedResult("ARR, 8B", "local", _ARR, reported_mean=0.610),
    PublishedResult("U-MARVEL, Qwen2-VL-7B", "local", _UMARVEL, reported_mean=0.632),
    PublishedResult(
        "UniIR CLIP-SF, large",
        "union",
        _PYSERINI,
        (
            *(0.4254, 0.7173, 0.1786, 0.8342, 0.5251, 0.7762, 0.3867, 0.9160),
            *(0.1806, 0.3170, 0.3960, 0.2222, 0.2425, 0.4384, 0.6019, 0.4435),
        ),
    ),
    PublishedResult(
        "UniIR BLIP-FF, large",
        "union",
        _PYSERINI,
        (
            *(0.2265, 0.6695, 0.2600, 0.7796, 0.4968, 0.7718, 0.2095, 0.8972),
            *(0.2727, 0.3189, 0.3949, 0.1999, 0.2902, 0.4827, 0.5603, 0.2623),
        ),
    ),
    PublishedResult("UniIR CLIP-SF", "union", _UNIIR, reported_mean=0.489),
    PublishedResult("UniIR BLIP-FF", "union", _UNIIR, reported_mean=0.455),
    PublishedResult("LamRA-Ret, Qwen2-VL-7B", "union", _LAMRA, reported_mean=0.549),
    PublishedResult("U-MARVEL, Qwen2-VL-7B", "union", _UMARVEL, reported_mean=0.607),
)
"""Single retrievers without a reranker."""


def render_published_table(rows: Sequence[ResultRow], split: str = "test") -> str:
    """Return a Markdown table per pool of runs and what was published, in percent.

    A run on some of M-BEIR's columns only has "-" for the others and for the mean. A run on another
    benchmark or split is shown alone, and the text says so.

    Args:
        rows: Result rows of any number of runs and gates.
        split: Split that the rows are of.

    Raises:
        ValueError: No row is of the metric `headline`.
    """
    headline = [row for row in rows if row.metric == HEADLINE and row.subset == "all"]
    names = list(dict.fromkeys(row.column for row in headline if row.column != "all"))
    if not names:
        raise ValueError(f"no row of the metric {HEADLINE!r} to show beside published numbers")
    others = [name for name in names if name not in MBEIR_COLUMNS]
    columns = names if others else list(MBEIR_COLUMNS)
    note = _NOT_COMPARABLE.format("sixteen columns", ", ".join(others)) if others else ""
    if split != "test":
        note += _NOT_COMPARABLE.format("test split", f"split {split}")
    text = ""
    for pool in ("local", "union"):
        lines = {
            (row.run, row.gate): f"{row.run}, {row.gate}" for row in headline if row.pool == pool
        }
        cells = {(r.run, r.gate, r.column): r.value for r in headline if r.pool == pool}
        table = [["system", *columns, "mean", "source"]]
        for (run, gate), name in lines.items():
            values = [cells.get((run, gate, column)) for column in columns]
            mean = None if None in values else cells.get((run, gate, "all"))
            table.append([name, *map(_format_percent, [*values, mean]), "this run"])
        for result in () if note else PUBLISHED:
            if result.pool == pool:
                values = [*(result.values or [None] * len(columns)), result.mean]
                table.append([result.system, *map(_format_percent, values), result.source])
        text += f"### {pool} pool, recall at each column's headline k in percent\n\n"
        text += f"{_join_cells(table)}\n"
    return text + note


def _join_cells(table: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first line is the heading and middle columns are numbers."""
    rule = [":--", *["--:"] * (len(table[0]) - 2), ":--"]
    return "".join(f"| {' | '.join(line)} |\n" for line in (table[0], rule, *table[1:]))


def _format_percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
