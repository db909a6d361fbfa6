"""Compares rationales that a build of Scenes wrote with the reference ones, stage by stage.

python experiments/cot/exactness.py [--work runs/cot_scenes] [--output FILE]

Of the samples that are left after each stage it counts those whose text is the reference's to the
last character (`exact`), and those whose answer is (`right_answer`): of what was asked for, what
was written, what passed the rules, what passed the verifier, and the rows that a fit reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from tracelib.construction.journal.journal_row import Phase
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.rules.tags import has_tags, parse_rationale_text
from tracelib.data.mbeir import MBEIRReader
from tracelib.retrieval.runs import collect_provenance

Parts = tuple[str, str]
"""Reasoning and answer."""

_REPORT = Path(__file__).with_name("exactness.json")
_STAGES: dict[str, Phase] = {
    "written": "generate",
    "passed the rules": "filter",
    "passed the verifier": "verify",
}


def compare_with_reference(
    work: Path = Path("runs/cot_scenes"),
    root: Path = Path("data/scenes"),
    folder: str = "rationales_cot",
    split: str = "train",
    output: Path = _REPORT,
) -> dict[str, Any]:
    """Compare, print the counts and write them as JSON.

    Args:
        work: Work folder of the build.
        root: Tree of Scenes.
        folder: Folder below the root with the rows that were built.
        split: Split of the queries.
        output: The report.
    """
    reader, built = MBEIRReader(root), MBEIRReader(root, rationale_folder=folder)
    reference = {
        row.query_id: (row.reasoning, row.answer or "")
        for row in reader.read_rationales(split)
        if row.reasoning is not None
    }
    samples = read_samples(work)
    found = {"asked for": [(key[0], parts) for key, parts in samples["asked for"].items()]}
    found |= {
        stage: [(key[0], samples["asked for"][key]) for key in samples[stage]] for stage in _STAGES
    }
    rows = list(built.read_rationales(split))
    found["built rows"] = [
        (row.query_id, (row.reasoning, row.answer or "")) for row in rows if row.reasoning
    ]
    report = {
        "stages": {name: count(entries, reference) for name, entries in found.items()},
        "hard_queries": len(reference),
        "direct_rows": sum(row.reasoning is None for row in rows),
    }
    _print(report)
    config = {"work": work, "root": root, "folder": folder, "split": split}
    provenance = collect_provenance(config, built.file_hashes(split), {}, "")
    output.write_text(json.dumps({"provenance": provenance, **report}, indent=1) + "\n")
    return report


def read_samples(work: Path) -> dict[str, dict[tuple[str, int], Parts | None]]:
    """Return the samples of each stage, with their parts where these can be read.

    Args:
        work: Work folder of a build that is done.
    """
    with Journal(work) as journal:
        rows = list(journal.open_phase("generate").read_newest())
        samples: dict[str, dict[tuple[str, int], Parts | None]] = {
            "asked for": {(r.query_id, r.sample): _parse(r.result.get("text", "")) for r in rows}
        }
        for stage, phase in _STAGES.items():
            done = journal.open_phase(phase).read_newest("done")
            keys = ((row.query_id, row.sample) for row in done)
            samples[stage] = {key: samples["asked for"][key] for key in keys}
    return samples


def count(entries: list[tuple[str, Parts | None]], reference: dict[str, Parts]) -> dict[str, Any]:
    """Return how many samples there are, and the shares that are exact and right in the end.

    Args:
        entries: Query id and parts of each sample.
        reference: Parts of the right one by query id.
    """
    exact = sum(parts == reference.get(query_id) for query_id, parts in entries)
    right = sum(_end_right(parts, reference.get(query_id)) for query_id, parts in entries)
    number = max(1, len(entries))
    return {
        "num_samples": len(entries),
        "num_queries": len({query_id for query_id, _ in entries}),
        "exact": exact / number,
        "right_answer": right / number,
    }


def _end_right(parts: Parts | None, expected: Parts | None) -> bool:
    return parts is not None and expected is not None and parts[1] == expected[1]


def _parse(text: str) -> Parts | None:
    return parse_rationale_text(text) if has_tags(text) else None


def _iterate_cells(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, values in report["stages"].items():
        numbers = (f"{values[key]:,}" for key in ("num_samples", "num_queries"))
        yield (name, *numbers, f"{values['exact']:.4f}", f"{values['right_answer']:.4f}")


def _print(report: dict[str, Any]) -> None:
    table = Table(title="rationales beside the reference")
    for heading in ("stage", "samples", "queries", "exact", "right answer"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for cells in _iterate_cells(report):
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    auto_cli(compare_with_reference)
