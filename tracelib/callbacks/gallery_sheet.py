"""Draws what a query asked, thought and found, as a sheet for people to read."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _MARGIN, _PADDING, _GAP = 1100, 20, 20, 12
_QUERY_WIDTH, _TALL_SIDE, _MAX_UPSCALING = 264, 168, 3
_CANVAS = 1000  # canvas of a panel before its height is known

_PAPER, _WHITE, _SHADE, _LINE = "#f3f4f6", "#ffffff", "#f8f9fa", "#dde1e6"
_INK, _GREY, _GREEN, _RED, _GOLD, _BLUE = (
    "#212529", "#868e96", "#2b8a3e", "#c92a2a", "#b7791f", "#3b5bdb",
)  # fmt: skip
_ASCII = str.maketrans("‘’“”–—−", "''\"\"---")  # the built-in font has little else


@dataclass(frozen=True)
class Record:
    """A query or candidate to draw.

    Args:
        text: Its text, `""` for none.
        image: Its picture, or None.
    """

    text: str
    image: Image.Image | None


@dataclass(frozen=True)
class Result:
    """A candidate that was found.

    Args:
        record: The candidate.
        score: Its cosine.
        is_hit: Whether it is a positive.
    """

    record: Record
    score: float
    is_hit: bool


@dataclass(frozen=True)
class Panel:
    """One query with all there is to see of it.

    Args:
        title: Where the query is from.
        instruction: What was asked for, `""` for none.
        query: The query.
        decision: What the gate made of it, e.g. `thought` or `bypassed`.
        think_probability: The router's probability, or None without a router.
        rationale: What was written, `""` for nothing.
        gold: A positive, or None when the pool has none.
        gold_rank: Rank of the first positive from 1, or None when it was not found.
        results: Candidates found, best first; at least one.
    """

    title: str
    instruction: str
    query: Record
    decision: str
    think_probability: float | None
    rationale: str
    gold: Record | None
    gold_rank: int | None
    results: Sequence[Result]


def compose_sheet(panels: Sequence[Panel]) -> Image.Image:
    """Return one picture of all panels, one below the other."""
    drawn = [_draw_panel(panel) for panel in panels]
    height = sum(image.height + _MARGIN for image in drawn) + _MARGIN
    sheet = Image.new("RGB", (_WIDTH, height), _PAPER)
    top = _MARGIN
    for image in drawn:
        sheet.paste(image, (_MARGIN, top))
        top += image.height + _MARGIN
    return sheet


def wrap_text(text: str, size: int, width: int, max_lines: int) -> list[str]:
    """Break text into lines at most `width` pixels wide, and elide what needs more lines.

    A word too long for a line is broken anywhere.

    >>> wrap_text("a red moon above a star", size=12, width=70, max_lines=1)
    ['a red moo…']
    """
    get_length = _load_font(size).getlength
    lines: list[str] = []
    line, words = "", _to_printable(text).split()[::-1]
    while words and len(lines) <= max_lines:
        word = words.pop()
        longer = f"{line} {word}" if line else word
        if get_length(longer) <= width:
            line = longer
            continue
        if line:
            words.append(word)
        else:
            fitting = 1
            while get_length(word[: fitting + 1]) <= width:
                fitting += 1
            line = word[:fitting]
            words.append(word[fitting:])
        lines.append(line)
        line = ""
    lines += [line] if line else []
    if len(lines) <= max_lines:
        return lines
    last = " ".join(lines[max_lines - 1 : max_lines + 1])
    return [*lines[: max_lines - 1], _elide(last, size, width)]


def fit_image(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale a picture into a box: large ones down, small ones up to three times."""
    factor = min(width / image.width, height / image.height, _MAX_UPSCALING)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    is_whole = factor >= 1 and factor == int(factor)
    return image.resize(size, Image.Resampling.NEAREST if is_whole else Image.Resampling.LANCZOS)


@functools.cache
def _load_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _to_printable(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.translate(_ASCII))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _elide(text: str, size: int, width: int) -> str:
    get_length = _load_font(size).getlength
    if get_length(text) <= width:
        return text
    while text and get_length(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


class _Pen:
    """Draws on one panel; every method returns the y below what it drew."""

    def __init__(self, canvas: Image.Image) -> None:
        self.canvas, self.draw = canvas, ImageDraw.Draw(canvas)

    def write(
        self, x: int, y: int, text: str, size: int, color: str, width: int, max_lines: int
    ) -> int:
        """Write wrapped text."""
        for line in wrap_text(text, size, width, max_lines):
            self.draw.text((x, y), line, color, _load_font(size))
            y += round(size * 1.35)
        return y

    def head(self, x: int, y: int, text: str, color: str, width: int, anchor: str = "la") -> int:
        """Write a small heading in capitals."""
        spaced = "  ".join(_to_printable(text).upper().split())  # the font's space is narrow
        self.draw.text((x, y), _elide(spaced, 11, width), color, _load_font(11), anchor)
        return y + 19

    def box(self, x: int, y: int, width: int, height: int, color: str, line: int) -> int:
        """Draw a shaded box with a line around it, outside of its area."""
        corners = (x - line, y - line, x + width - 1 + line, y + height - 1 + line)
        self.draw.rounded_rectangle(corners, 4, _SHADE, color, line)
        return y + height

    def picture(self, x: int, y: int, image: Image.Image, side: int, color: str, line: int) -> int:
        """Place a picture in the middle of a framed square."""
        scaled = fit_image(image, side, side)
        bottom = self.box(x, y, side, side, color, line)
        self.canvas.paste(scaled, (x + (side - scaled.width) // 2, y + (side - scaled.height) // 2))
        return bottom

    def record(self, x: int, y: int, record: Record, side: int, color: str, line: int) -> int:
        """Draw a candidate: a framed picture or text, and the text of a picture below it."""
        if record.image is None:
            self.box(x, y, side, _TALL_SIDE, color, line)
            self.write(x + 7, y + 6, record.text, 11, _INK, side - 14, (_TALL_SIDE - 12) // 15)
            return y + _TALL_SIDE
        bottom = self.picture(x, y, record.image, side, color, line)
        return self.write(x, bottom + 7, record.text, 11, _INK, side, 7)

    def check(self, x: int, y: int) -> None:
        """Draw a white check mark in a green disc around a point."""
        self.draw.ellipse((x - 9, y - 9, x + 9, y + 9), _GREEN, _WHITE, 1)
        self.draw.line([(x - 4, y), (x - 1, y + 4), (x + 5, y - 4)], _WHITE, 2, joint="curve")


def _draw_panel(panel: Panel) -> Image.Image:
    width = _WIDTH - 2 * _MARGIN
    pen = _Pen(Image.new("RGB", (width, _CANVAS), _WHITE))
    inner = width - 2 * _PADDING
    found = "not found" if panel.gold_rank is None else f"gold at rank {panel.gold_rank}"
    is_hit = any(result.is_hit for result in panel.results)
    pen.head(width - _PADDING, _PADDING, found, _GREEN if is_hit else _RED, 150, anchor="ra")
    top = pen.head(_PADDING, _PADDING, panel.title, _GREY, inner - 150 - _GAP) + 6
    left = _draw_query(pen, _PADDING, top, panel)
    right = _draw_candidates(pen, _PADDING + _QUERY_WIDTH + 2 * _GAP, top, panel)
    bottom = _draw_thought(pen, _PADDING, max(left, right) + 12, panel, inner) + _PADDING - 6
    image = pen.canvas.crop((0, 0, width, bottom))
    ImageDraw.Draw(image).rectangle((0, 0, width - 1, bottom - 1), None, _LINE)
    return image


def _draw_query(pen: _Pen, x: int, y: int, panel: Panel) -> int:
    y = pen.head(x, y, "query", _GREY, _QUERY_WIDTH)
    if panel.query.image is not None:
        y = pen.picture(x, y, panel.query.image, _TALL_SIDE, _LINE, 1) + 10
    y = pen.write(x, y, panel.query.text, 14, _INK, _QUERY_WIDTH, 7)
    return pen.write(x, y + 2, panel.instruction, 12, _GREY, _QUERY_WIDTH, 2)


def _draw_candidates(pen: _Pen, x: int, y: int, panel: Panel) -> int:
    num_cells = 1 + len(panel.results)
    right = _WIDTH - 2 * _MARGIN - _PADDING
    side = (right - x - _GAP * (num_cells - 1)) // num_cells
    top = pen.head(x, y, "gold", _GOLD, side)
    gold = panel.gold or Record("none of the positives is in the pool", None)
    bottom = pen.record(x, top, gold, side, _GOLD, 2)
    for rank, result in enumerate(panel.results, start=1):
        x += side + _GAP
        color = _GREEN if result.is_hit else _GREY
        pen.head(x, y, f"{rank} · {result.score:.3f}", color, side)
        frame, line = (_GREEN, 3) if result.is_hit else (_LINE, 1)
        bottom = max(bottom, pen.record(x, top, result.record, side, frame, line))
        if result.is_hit:
            pen.check(x + side + 1, top - 1)
    return bottom


def _draw_thought(pen: _Pen, x: int, y: int, panel: Panel, width: int) -> int:
    pen.draw.line([(x, y), (x + width, y)], _LINE)
    heading = panel.decision
    if panel.think_probability is not None:
        heading += f" · P(think) {panel.think_probability:.2f}"
    y = pen.head(x, y + 10, heading, _BLUE if panel.rationale else _GREY, width)
    return pen.write(x, y, panel.rationale, 13, _INK, width, 4)
