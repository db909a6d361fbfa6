"""Draws a sample as a picture, for places that show nothing but pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tracelib.callbacks.gallery_sheet import fit_image, wrap_text
from tracelib.construction.report.sample import Sample, Side
from tracelib.construction.report.shown_text import clean_text
from tracelib.data.images import load_image

_WIDTH, _HEIGHT, _MARGIN, _SIDE = 1100, 330, 18, 220
_WHITE, _INK, _GREY, _SHADE = "#ffffff", "#212529", "#5c6670", "#f1f3f5"
_COLORS = {"kept": "#1f7a35", "dropped": "#b42318", "direct": "#5c6670"}
_OTHER_COLOR = "#8a5a00"
_MAX_CHARACTERS = 2000


def draw_sample(sample: Sample, root: Path) -> Image.Image:
    """Return a picture of a sample: query, what was written and why it was dropped, target.

    Args:
        sample: It.
        root: Folder that its pictures lie in.
    """
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _WHITE)
    pen = ImageDraw.Draw(picture)
    color = _COLORS.get(sample.verdict, _OTHER_COLOR)
    pen.rectangle((0, 0, 5, _HEIGHT), color)
    rules = ", ".join(sample.rules)
    where = f"{sample.dataset}, task {sample.task_id}, query {sample.query.id}"
    title = f"{sample.verdict}{': ' if rules else ''}{rules}"
    _write(pen, _MARGIN, 14, title, 15, color, 620, 1)
    right = _WIDTH - _MARGIN - _SIDE
    _write(pen, right, 16, where, 12, _GREY, _SIDE, 1)
    _draw_side(picture, _MARGIN, "query", sample.query, sample.instruction, root)
    _draw_side(picture, right, "target", sample.target, sample.target.id, root)
    _draw_writing(pen, sample, right - _SIDE - 4 * _MARGIN)
    return picture


def _draw_writing(pen: ImageDraw.ImageDraw, sample: Sample, width: int) -> None:
    x = _SIDE + 3 * _MARGIN
    writing, y = sample.writing, 48
    if writing is None:
        y = _write(pen, x, y, "no rationale", 14, _GREY, width, 1)
    elif writing.reasoning is None or writing.answer is None:
        y = _write(pen, x, y, writing.raw, 14, _INK, width, 9)
    else:
        y = _write(pen, x, y, writing.reasoning, 14, _INK, width, 7)
        y = _write(pen, x, y + 8, writing.answer, 16, _COLORS["kept"], width, 2)
    if (judged := sample.judgement) is not None:
        text = f"verifier {judged.confidence:.2f}: {judged.reason}"
        y = _write(pen, x, y + 8, text, 12, _GREY, width, 2)
    for reason in sample.reasons[:2]:
        text = f"{reason.rule}: {reason.detail}"
        y = _write(pen, x, y + 8, text, 12, _COLORS["dropped"], width, 2)


def _draw_side(picture: Image.Image, x: int, label: str, side: Side, note: str, root: Path) -> None:
    pen, y = ImageDraw.Draw(picture), 48
    y = _write(pen, x, y, label, 11, _GREY, _SIDE, 1)
    if side.image_path is not None:
        edge = 150
        pen.rectangle((x, y, x + _SIDE, y + edge), _SHADE)
        try:
            scaled = fit_image(load_image(root, side.image_path), _SIDE, edge)
            picture.paste(
                scaled, (x + (_SIDE - scaled.width) // 2, y + (edge - scaled.height) // 2)
            )
        except (ValueError, OSError):
            _write(pen, x + 8, y + 8, "this picture cannot be read", 12, _GREY, _SIDE - 16, 2)
        y += edge + 8
    y = _write(pen, x, y, side.text, 13, _INK, _SIDE, 3 if side.image_path else 10)
    _write(pen, x, y + 2, note, 11, _GREY, _SIDE, 2)


def _write(
    pen: ImageDraw.ImageDraw,
    x: int,
    y: int,
    text: str,
    size: int,
    color: str,
    width: int,
    most: int,
) -> int:
    """Write wrapped text; return the y below it."""
    for line in wrap_text(clean_text(text, _MAX_CHARACTERS), size, width, most):
        pen.text((x, y), line, color, ImageFont.load_default(size))
        y += round(size * 1.35)
    return y
