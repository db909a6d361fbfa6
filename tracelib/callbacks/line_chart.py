"""Draws lines over two axes with Pillow alone, for files and TensorBoard."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIZE = (900, 600)
"""Width and height of a chart in pixels."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9")
"""Of the series in turn; told apart also by colour-blind readers."""
GREY = "#868e96"
_INK, _GRID, _WHITE = "#212529", "#e3e6ea", "#ffffff"
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 168, 84, 64  # of the margins; the legend is on the right
_SCALE = 2  # drawn larger and reduced: Pillow's lines have rough edges
_NUM_TICKS = 6
_DASH = 7

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: Its name in the legend.
        points: x and y of its points, in the order in which they are joined.
        color: Its colour, as `#rrggbb`.
        labels: Text at each point, or none.
        is_dashed: Draw it dashed and without marks, as what others are held against.
    """

    name: str
    points: Sequence[Point]
    color: str
    labels: Sequence[str] = ()
    is_dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """What one axis shows.

    Args:
        label: Its name, with the unit.
        low: The least value shown.
        high: The largest value shown, above `low`.
    """

    label: str
    low: float
    high: float

    @property
    def ticks(self) -> list[float]:
        """The round numbers in the axis, about six.

        >>> Axis("share", 0, 1).ticks
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        """
        rough = (self.high - self.low) / _NUM_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [round(n * step, 12) for n in range(first, last + 1)]

    def scale(self, value: float) -> float:
        """Return where a value lies, 0 at the low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def fit_axis(label: str, values: Sequence[float]) -> Axis:
    """Return an axis that shows all values, with a little room.

    >>> fit_axis("recall", [0.5, 0.7])
    Axis(label='recall', low=0.49, high=0.71)
    """
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(label, round(low - room, 9), round(high + room, 9))


def locate_point(point: Point, x_axis: Axis, y_axis: Axis) -> Point:
    """Return where in the picture, in pixels from its top left corner, a point is drawn."""
    width, height = SIZE[0] - _LEFT - _RIGHT, SIZE[1] - _TOP - _BOTTOM
    left = _LEFT + width * x_axis.scale(point[0])
    return left, _TOP + height * (1 - y_axis.scale(point[1]))


def draw_line_chart(
    title: str, x_axis: Axis, y_axis: Axis, series: Sequence[Series]
) -> Image.Image:
    """Return a picture of some lines; later ones lie over earlier ones."""
    picture = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), _WHITE)
    pen = _Pen(ImageDraw.Draw(picture), x_axis, y_axis)
    pen.frame(title)
    for line in series:
        pen.line(line)
    for place, line in enumerate(series):
        pen.legend(place, line)
    return picture.reduce(_SCALE)


@functools.cache
def _load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


@dataclass(frozen=True)
class _Pen:
    """Draws on one chart; places are pixels of the reduced picture."""

    draw: ImageDraw.ImageDraw
    x_axis: Axis
    y_axis: Axis

    def text(self, x: float, y: float, text: str, size: int, color: str, anchor: str) -> None:
        place = (x * _SCALE, y * _SCALE)
        self.draw.text(place, text, color, _load_font(size), anchor)

    def stroke(self, start: Point, end: Point, color: str, width: int) -> None:
        places = [(x * _SCALE, y * _SCALE) for x, y in (start, end)]
        self.draw.line(places, color, width * _SCALE)

    def mark(self, place: Point, color: str, radius: float) -> None:
        x, y = place[0] * _SCALE, place[1] * _SCALE
        r = radius * _SCALE
        self.draw.ellipse((x - r, y - r, x + r, y + r), color)

    def frame(self, title: str) -> None:
        """Draw title, ticks with their lines, and the names of the axes."""
        (left, bottom), (right, top) = (_LEFT, SIZE[1] - _BOTTOM), (SIZE[0] - _RIGHT, _TOP)
        self.text(left, 18, title, 20, _INK, "la")
        self.text(left, 54, self.y_axis.label, 14, GREY, "la")
        self.text((left + right) / 2, SIZE[1] - 14, self.x_axis.label, 14, GREY, "md")
        for tick in self.x_axis.ticks:
            x = locate_point((tick, self.y_axis.low), self.x_axis, self.y_axis)[0]
            self.stroke((x, top), (x, bottom), _GRID, 1)
            self.text(x, bottom + 8, f"{tick:,g}", 14, _INK, "ma")
        for tick in self.y_axis.ticks:
            y = locate_point((self.x_axis.low, tick), self.x_axis, self.y_axis)[1]
            self.stroke((left, y), (right, y), _GRID, 1)
            self.text(left - 10, y, f"{tick:,g}", 14, _INK, "rm")
        self.stroke((left, bottom), (right, bottom), GREY, 1)
        self.stroke((left, top), (left, bottom), GREY, 1)

    def line(self, series: Series) -> None:
        """Join the points of a series and mark them."""
        places = [locate_point(point, self.x_axis, self.y_axis) for point in series.points]
        for start, end in itertools.pairwise(places):
            if series.is_dashed:
                self.dash(start, end, series.color)
            else:
                self.stroke(start, end, series.color, 3)
        if not series.is_dashed:
            for place in places:
                self.mark(place, series.color, 4.5)
        for (x, y), label in zip(places, series.labels, strict=False):
            is_high = y < _TOP + 20
            self.text(x, y + (9 if is_high else -9), label, 12, _INK, "ma" if is_high else "md")

    def dash(self, start: Point, end: Point, color: str) -> None:
        """Draw a dashed line."""
        (x, y), length = start, math.dist(start, end)
        count = max(1, round(length / _DASH))
        dx, dy = (end[0] - x) / count, (end[1] - y) / count
        for n in range(0, count, 2):
            self.stroke((x + n * dx, y + n * dy), (x + (n + 1) * dx, y + (n + 1) * dy), color, 2)

    def legend(self, place: int, series: Series) -> None:
        """Name a series beside the chart."""
        x, y = SIZE[0] - _RIGHT + 18, _TOP + 12 + 26 * place
        if series.is_dashed:
            self.dash((x, y), (x + 26, y), series.color)
        else:
            self.stroke((x, y), (x + 26, y), series.color, 3)
            self.mark((x + 13, y), series.color, 4.5)
        self.text(x + 34, y, series.name, 14, _INK, "lm")
