"""The card of a built data set: what is in it, how it came about, and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tracelib.construction.journal.journal_row import PHASES
from tracelib.construction.journal.progress import STATES
from tracelib.construction.output import DROPPED_FILE
from tracelib.construction.report.markdown import escape_markdown, format_bars, format_table
from tracelib.construction.report.summary import Summary
from tracelib.data.layout import Layout
from tracelib.retrieval.whole_files import write_whole

_CARD = """# {title}

Rationales for the queries of `{tree}`, split `{split}`, in the format of M-BEIR-CoT: a row per
query with its difficulty and, where it needs thought, the reasoning and answer to be learned.
{num_rows:,} rows, {num_kept:,} of them with a rationale, from {num_queries:,} queries.

Made by `python -m tracelib cot build`. Train on it with
`python -m tracelib fit ... --data.rationale_folder {folder}`; as queries that need thought and got
no rationale have no row, add `--data.only_annotated true`.

## Rows

{datasets}

Difficulty is that of the assessor `{assessor}`. Hard queries are asked for rationales; *unanswered*
are those of which no sample was left. They have no row, so that nobody learns to answer them at
once.

## Who wrote the rationales

{writers}

A rationale of source `teacher` was written without sight of the target, one of source `oracle`
with it: such a text may carry the target, and an embedding read after it says little about
retrieval.

## Samples by phase

A phase has the samples that the phase before let through.

{phases}

## Why samples were dropped

Nothing is deleted: `{dropped}` has every drop with its text and reason. A sample that broke
several rules counts for each.

{rules}

{sections}## Provenance

{provenance}
"""


def write_card(layout: Layout, split: str, summary: Summary, provenance: Mapping[str, Any]) -> Path:
    """Write the card beside the rows, whole or not at all; return its path.

    Args:
        layout: The data tree, with the folder of the rows.
        split: Split of the queries.
        summary: The build in numbers.
        provenance: Of `collect_provenance`; its time is left out, so that the same build has the
            same card.
    """
    path = layout.root / layout.rationale_folder / "README.md"
    write_whole(path, format_card(layout, split, summary, provenance))
    return path


def format_card(layout: Layout, split: str, summary: Summary, provenance: Mapping[str, Any]) -> str:
    """Return the card as Markdown, with the header that the hub reads."""
    names = [name for name, counts in summary.datasets.items() if counts.num_rows]
    header = {
        "pretty_name": layout.rationale_folder,
        "tags": ["tracelib", "m-beir", "chain-of-thought", "multimodal-retrieval"],
        "configs": [
            *(
                _describe_file(name, split, layout.parquet_rationales(name, split).name)
                for name in names
            ),
            _describe_file("dropped", split, DROPPED_FILE),
        ],
    }
    text = _CARD.format(
        title=escape_markdown(layout.rationale_folder),
        tree=layout.root.resolve().name,
        split=split,
        folder=layout.rationale_folder,
        num_rows=summary.count("num_rows"),
        num_kept=summary.count("num_kept"),
        num_queries=summary.count("num_queries"),
        assessor=summary.assessor,
        dropped=DROPPED_FILE,
        datasets=_format_datasets(summary),
        writers=_format_writers(summary),
        phases=_format_phases(summary),
        rules=_format_rules(summary),
        sections=_format_sections(summary),
        provenance=_format_provenance(provenance),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{text}"


def _format_datasets(summary: Summary) -> str:
    headings = ("data set", "queries", "easy", "hard", "direct", "with rationale", "unanswered")
    name = summary.assessor
    rows: list[list[Any]] = [
        [
            dataset,
            found.num_queries,
            found.num_easy[name],
            found.num_hard[name],
            found.num_direct,
            found.num_kept,
            found.num_unanswered,
        ]
        for dataset, found in summary.datasets.items()
    ]
    if len(rows) > 1:
        rows.append(["all", *map(sum, zip(*(row[1:] for row in rows), strict=True))])
    return format_table(headings, rows)


def _format_writers(summary: Summary) -> str:
    rows = [(source, model, count) for (source, model), count in sorted(summary.writers.items())]
    if not rows:
        return "Nobody: there are none."
    return format_table(("source", "model", "rows"), rows, num_texts=2)


def _format_phases(summary: Summary) -> str:
    rows = [
        (f"{dataset}, {phase}", *(found.states[phase][state] for state in STATES))
        for dataset, found in summary.datasets.items()
        for phase in PHASES
        if found.states[phase].total()
    ]
    return format_table(("data set, phase", *STATES), rows)


def _format_rules(summary: Summary) -> str:
    rules = sorted(summary.count_rules().items(), key=lambda item: (-item[1], item[0]))
    if not rules:
        return "Nothing was."
    datasets = summary.datasets
    headings = ("phase, rule", "drops", *(datasets if len(datasets) > 1 else ()))
    rows = [
        (
            f"{phase}, {rule}",
            count,
            *(
                (found.rules[phase, rule] for found in datasets.values())
                if len(datasets) > 1
                else ()
            ),
        )
        for (phase, rule), count in rules
    ]
    return format_table(headings, rows)


def _format_sections(summary: Summary) -> str:
    """Return the sections that not every build has."""
    sections = {
        name: format_bars(*tallies)
        for name, tallies in summary.histograms.items()
        if tallies[0].num_values
    }
    if summary.agreements.pairs:
        sections = {"Agreement on difficulty": _format_agreements(summary), **sections}
    if summary.usage:
        sections["What was asked"] = _format_usage(summary)
    return "".join(f"## {name}\n\n{text}\n\n" for name, text in sections.items())


def _format_agreements(summary: Summary) -> str:
    headings = ("assessors", "queries", "agreement", "kappa", "first hard", "second hard")
    rows = [
        (
            f"{pair.first}, {pair.second}",
            pair.num_queries,
            "" if pair.share is None else f"{pair.share:.4f}",
            "" if pair.kappa is None else f"{pair.kappa:.4f}",
            pair.num_first_hard,
            pair.num_second_hard,
        )
        for pair in summary.agreements.pairs
    ]
    return (
        "Kappa is Cohen's; *first hard* and *second hard* are queries that only this one calls "
        f"hard.\n\n{format_table(headings, rows)}"
    )


def _format_usage(summary: Summary) -> str:
    headings = ("phase", "model", "replies", "prompt tokens", "reply tokens", "cost")
    rows = [
        (
            phase,
            model,
            usage.num_replies,
            usage.prompt_tokens,
            usage.completion_tokens,
            "" if usage.cost is None else f"{usage.cost:,.2f}",
        )
        for (phase, model), usage in sorted(summary.usage.items())
    ]
    return (
        "Every whole reply, also those that could not be read. Answers that were empty, cut short, "
        "refused or of another model are not counted, though they may have been charged.\n\n"
        f"{format_table(headings, rows, num_texts=2)}"
    )


def _format_provenance(provenance: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in provenance.items() if name != "created_utc"}
    return f"```yaml\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}```"


def _describe_file(name: str, split: str, file: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": split, "path": file}]}
