"""What stands above the samples: the counts of a build, its drop reasons and its histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracelib.construction.report.shown_text import escape_text
from tracelib.construction.report.tally import Tally, choose_bins

_WIDTH, _HEIGHT, _FLOOR, _TOP = 320, 200, 182, 8
_MAX_STEP = 40
_MAX_BINS = 20
_MAX_NAME = 80


def format_tiles(counts: Mapping[str, int]) -> str:
    """Return a tile per count, which its name stands under."""
    tiles = [
        f'<div class="tile"><b>{count:,}</b><span>{escape_text(name, _MAX_NAME)}</span></div>'
        for name, count in counts.items()
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>\n'


def format_drops(drops: Mapping[str, int]) -> str:
    """Return the panel of drop reasons, the most frequent first; each shows its samples."""
    most = max(drops.values(), default=0)
    rows = []
    for rule, count in sorted(drops.items(), key=lambda drop: (-drop[1], drop[0])):
        name = escape_text(rule, _MAX_NAME)
        rows.append(
            f'<li><button type="button" data-show-rule="{name}"><span>{name}</span>'
            f'<em>{count:,}</em><span class="bar"><i style="width:{100 * count / most:.1f}%"></i>'
            "</span></button></li>"
        )
    body = f'<ul class="reasons">{"".join(rows)}</ul>' if rows else "<p>Nothing was dropped.</p>"
    return f'<section class="panel"><h2>Why samples were dropped</h2>{body}</section>\n'


def format_histogram(title: str, every: Tally, kept: Tally) -> str:
    """Return the panel of a histogram: of all samples, and over it of those that were kept.

    Args:
        title: What the values are.
        every: Values of all samples.
        kept: Values of the samples that were kept.
    """
    if not every.num_values:
        return ""
    starts, width = choose_bins([every, kept], _MAX_BINS)
    bars = [every.split_bins(starts, width), kept.split_bins(starts, width)]
    most = max(bar.num_values for series in bars for bar in series)
    step = min(_WIDTH / len(starts), _MAX_STEP)
    shapes = []
    for name, series in zip(("all", "kept"), bars, strict=True):
        for place, bar in enumerate(series):
            height = (_FLOOR - _TOP) * bar.num_values / most
            if bar.num_values:
                hint = f"{_name_range(bar.low, bar.high)}: {bar.num_values:,} {name}"
                shapes.append(
                    f'<rect class="{name}" x="{place * step + 1:.1f}" y="{_FLOOR - height:.1f}" '
                    f'width="{max(step - 2, 1):.1f}" height="{height:.1f}"><title>{hint}</title>'
                    "</rect>"
                )
    median = f"median {every.find_quantile(0.5):,}, of the kept {kept.find_quantile(0.5):,}"
    return (
        f'<section class="panel"><h2>{escape_text(title, _MAX_NAME)}</h2>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{median}">'
        f'{"".join(shapes)}<line class="axis" x1="0" x2="{_WIDTH}" y1="{_FLOOR}" y2="{_FLOOR}"/>'
        f"{_format_ticks(starts, step)}</svg>"
        f'<p class="key"><i class="all"></i><span>all</span><i class="kept"></i><span>kept</span>'
        f" · {median}</p></section>\n"
    )


def _format_ticks(starts: Sequence[int], step: float) -> str:
    every = -(-len(starts) // 6)
    return "".join(
        f'<text x="{place * step + 1:.1f}" y="{_HEIGHT - 5}">{start:,}</text>'
        for place, start in enumerate(starts)
        if place % every == 0
    )


def _name_range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
