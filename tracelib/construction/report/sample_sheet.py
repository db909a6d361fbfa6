"""The sample sheet: one page that shows what was kept and what was dropped, and why.

It needs nothing but itself: pictures are in it, no script, style or font is fetched, and only its
own script may run, so a reply that tries to be HTML stays text.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tracelib.construction.report.sample import VERDICTS, Sample
from tracelib.construction.report.sheet_card import format_card
from tracelib.construction.report.sheet_overview import (
    format_drops,
    format_histogram,
    format_tiles,
)
from tracelib.construction.report.shown_text import escape_text
from tracelib.construction.report.tally import Tally
from tracelib.retrieval.whole_files import write_whole

MAX_BYTES = 5_000_000
"""Largest page: what a browser opens at once and a mail takes."""
_RESERVED_BYTES = 200_000
_MAX_NAME = 80


@dataclass(frozen=True)
class Overview:
    """What stands above the samples.

    Args:
        title: Name of the build.
        lead: A sentence about it.
        counts: Numbers by name.
        drops: Dropped samples by rule.
        histograms: By name, values of all samples and of those that were kept.
    """

    title: str
    lead: str
    counts: Mapping[str, int]
    drops: Mapping[str, int]
    histograms: Mapping[str, tuple[Tally, Tally]]


def write_sample_sheet(
    path: Path, overview: Overview, groups: Mapping[str, Sequence[Sample]], root: Path
) -> int:
    """Write the page, whole or not at all; return the number of samples on it.

    A page that would grow beyond `MAX_BYTES` takes samples of each group in turn until it is full,
    and says how many are left out.

    Args:
        path: File of the page.
        overview: What stands above the samples.
        groups: Samples by what they are an example of, in the order in which they are shown.
        root: Folder that their pictures lie in.
    """
    cards, num_left_out = _fill_page(groups, root)
    write_whole(path, _format_page(overview, cards, num_left_out))
    return len(cards)


def _fill_page(
    groups: Mapping[str, Sequence[Sample]], root: Path
) -> tuple[list[tuple[Sample, str]], int]:
    """Return the cards that the page has room for, in the order of the groups, and the others."""
    cards: dict[tuple[int, int], tuple[Sample, str]] = {}
    room = MAX_BYTES - _RESERVED_BYTES
    turns: Iterable[tuple[Sample | None, ...]] = itertools.zip_longest(*groups.values())
    for turn, samples in enumerate(turns):
        for group, sample in enumerate(samples):
            if sample is not None:
                card = format_card(sample, root)
                if (size := len(card.encode())) <= room:
                    room -= size
                    cards[group, turn] = (sample, card)
    num_samples = sum(map(len, groups.values()))
    return [cards[place] for place in sorted(cards)], num_samples - len(cards)


def _format_page(overview: Overview, cards: Sequence[tuple[Sample, str]], num_left_out: int) -> str:
    style, script = (_read_asset(f"sample_sheet.{kind}") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    title = escape_text(overview.title, _MAX_NAME)
    panels = format_drops(overview.drops) + "".join(
        format_histogram(name, *tallies) for name, tallies in overview.histograms.items()
    )
    note = f" {num_left_out:,} more had no room on this page." if num_left_out else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: sample sheet</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{title}</h1>\n<p class="lead">{escape_text(overview.lead)}</p>\n'
        f'{format_tiles(overview.counts)}<div class="panels">\n{panels}</div>\n</header>\n'
        f"<main>\n{_format_filters([sample for sample, _ in cards])}"
        f"{''.join(card for _, card in cards)}"
        '<p class="none" id="none" hidden>No sample fits all filters.</p>\n</main>\n'
        f"<footer>A seeded sample of every group, not a share of it.{note}</footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _read_asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _format_filters(samples: Sequence[Sample]) -> str:
    verdicts = {sample.verdict for sample in samples}
    choices: dict[str, Sequence[str]] = {
        "verdict": [verdict for verdict in VERDICTS if verdict in verdicts],
        "dataset": sorted({sample.dataset for sample in samples}),
        "rule": sorted({reason.rule for sample in samples for reason in sample.reasons}),
    }
    fields = "".join(
        f'<label>{name}<select id="{name}" autocomplete="off"><option value="">all</option>'
        f"{''.join(_format_option(value) for value in values)}</select></label>\n"
        for name, values in choices.items()
    )
    return (
        f'<div class="filters">\n{fields}'
        '<label>words<input id="words" type="search" autocomplete="off" '
        'placeholder="in the sample"></label>\n'
        '<button id="reset" type="button">Show all</button>\n'
        f'<output id="shown">{len(samples)} samples</output>\n</div>\n'
    )


def _format_option(value: str) -> str:
    name = escape_text(value)
    return f'<option value="{name}">{name}</option>'
