"""A build's numbers as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from tracelib.construction.journal.journal_row import PHASES
from tracelib.construction.report.summary import DatasetCounts, Summary

_MAX_ERRORS = 5
_MAX_RULES = 20


def print_summary(console: Console, summary: Summary) -> None:
    """Print every table that has a row."""
    for table in (
        build_dataset_table(summary),
        build_phase_table(summary),
        build_rule_table(summary),
        build_agreement_table(summary),
        build_usage_table(summary),
    ):
        if table.row_count:
            console.print(table)
    for phase, errors in summary.errors.items():
        for error, count in errors.most_common(_MAX_ERRORS):
            text = f"{count:,} quarantined in {phase}: {error}"
            console.print(text, style="yellow", markup=False, highlight=False)


def build_dataset_table(summary: Summary) -> Table:
    """Return queries and rows by data set."""
    headings = ("queries", "easy", "hard", "direct rows", "reasoned rows", "unanswered")
    table = _make_table("rows by data set", "data set", headings)
    for name, counts in summary.datasets.items():
        table.add_row(name, *_list_counts(counts, summary.assessor))
    if len(summary.datasets) > 1:
        table.add_section()
        rows = [_list_numbers(counts, summary.assessor) for counts in summary.datasets.values()]
        table.add_row("all", *(f"{sum(column):,}" for column in zip(*rows, strict=True)))
    return table


def build_phase_table(summary: Summary) -> Table:
    """Return samples by phase and state."""
    headings = ("done", "dropped", "quarantined", "to be retried", "missing")
    table = _make_table("samples by phase", "phase", headings)
    for phase in PHASES:
        found = summary.count_states(phase)
        states = (found[s] for s in ("done", "dropped", "quarantined", "failed", "missing"))
        if found.total():
            table.add_row(phase, *(f"{count:,}" for count in states))
    return table


def build_rule_table(summary: Summary) -> Table:
    """Return drops by rule, the most frequent first."""
    rules = summary.count_rules()
    table = Table("phase", "rule", title="drops by rule")
    table.add_column("drops", justify="right")
    for (phase, rule), count in rules.most_common(_MAX_RULES):
        table.add_row(phase, rule, f"{count:,}")
    if len(rules) > _MAX_RULES:
        rest = rules.total() - sum(count for _, count in rules.most_common(_MAX_RULES))
        table.add_row("", f"{len(rules) - _MAX_RULES} more rules", f"{rest:,}")
    return table


def build_agreement_table(summary: Summary) -> Table:
    """Return how far every pair of assessors agrees."""
    headings = ("both easy", "first hard", "second hard", "both hard", "agreement", "kappa")
    table = _make_table("agreement on difficulty", "first, second", headings)
    for pair in summary.agreements.pairs:
        counts = (
            pair.num_both_easy,
            pair.num_first_hard,
            pair.num_second_hard,
            pair.num_both_hard,
        )
        share = "" if pair.share is None else f"{pair.share:.1%}"
        kappa = "" if pair.kappa is None else f"{pair.kappa:.3f}"
        name = f"{pair.first}, {pair.second}"
        table.add_row(name, *(f"{count:,}" for count in counts), share, kappa)
    return table


def build_usage_table(summary: Summary) -> Table:
    """Return tokens and cost by phase and model."""
    headings = ("replies", "prompt tokens", "reply tokens", "cost")
    table = Table("phase", "model", title="what was asked (whole replies)")
    for heading in headings:
        table.add_column(heading, justify="right")
    for (phase, model), usage in sorted(summary.usage.items()):
        table.add_row(
            phase,
            model,
            f"{usage.num_replies:,}",
            f"{usage.prompt_tokens:,}",
            f"{usage.completion_tokens:,}",
            "" if usage.cost is None else f"{usage.cost:,.2f}",
        )
    return table


def _make_table(title: str, first: str, headings: Sequence[str]) -> Table:
    table = Table(first, title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _list_numbers(counts: DatasetCounts, assessor: str) -> list[int]:
    return [
        counts.num_queries,
        counts.num_easy[assessor],
        counts.num_hard[assessor],
        counts.num_direct,
        counts.num_kept,
        counts.num_unanswered,
    ]


def _list_counts(counts: DatasetCounts, assessor: str) -> Iterator[str]:
    return (f"{count:,}" for count in _list_numbers(counts, assessor))
