import pytest
from PIL import ImageColor

from tracelib.callbacks.line_chart import (
    COLORS,
    SIZE,
    Axis,
    Series,
    draw_line_chart,
    fit_axis,
    locate_point,
)

X, Y = Axis("think rate", 0, 1), Axis("recall", 0.5, 1.0)
LINE = Series("head", [(0.1, 0.6), (0.5, 0.9), (0.9, 0.7)], COLORS[0])


def read_pixel(picture, point, x_axis=X, y_axis=Y):
    x, y = locate_point(point, x_axis, y_axis)
    return picture.getpixel((int(x), int(y)))


def has_color(picture, color, box=None):
    part = picture if box is None else picture.crop(box)
    wanted = ImageColor.getrgb(color)
    return any(found == wanted for _, found in part.getcolors(maxcolors=1 << 20))


def test_a_line_is_where_its_points_say():
    picture = draw_line_chart("title", X, Y, [LINE])
    assert picture.size == SIZE
    color = ImageColor.getrgb(COLORS[0])
    for point in (*LINE.points, (0.3, 0.75), (0.7, 0.8)):  # ends, and the middles between
        assert read_pixel(picture, point) == color
    for point in ((0.3, 0.65), (0.7, 0.9), (0.95, 0.7)):
        assert read_pixel(picture, point) != color


def test_the_corners_of_the_axes_are_the_corners_of_the_frame():
    left, bottom = locate_point((0, 0.5), X, Y)
    right, top = locate_point((1, 1), X, Y)
    assert 0 < left < right < SIZE[0]
    assert 0 < top < bottom < SIZE[1]
    assert locate_point((0.5, 0.75), X, Y) == ((left + right) / 2, (top + bottom) / 2)


def test_each_series_has_its_color_and_its_place_in_the_legend():
    other = Series("random", [(0, 0.55), (1, 0.55)], COLORS[1])
    legend = (SIZE[0] - 160, 0, *SIZE)
    picture = draw_line_chart("title", X, Y, [LINE, other])
    for color in COLORS[:2]:
        assert has_color(picture, color, legend)
        assert has_color(picture, color, (0, 0, legend[0], SIZE[1]))
    assert not has_color(draw_line_chart("title", X, Y, [LINE]), COLORS[1])


def test_a_dashed_line_has_gaps():
    level = [(0.1, 0.7), (0.9, 0.7)]
    pictures = [
        draw_line_chart("", X, Y, [Series("a", level, COLORS[0], is_dashed=dashed)])
        for dashed in (False, True)
    ]
    left, y = map(int, locate_point((0.2, 0.7), X, Y))
    counts = [
        sum(
            picture.getpixel((x, y)) == ImageColor.getrgb(COLORS[0]) for x in range(left, left + 90)
        )
        for picture in pictures
    ]
    assert counts[0] == 90
    assert 30 < counts[1] < 60


def test_titles_ticks_and_labels_are_written():
    plain = draw_line_chart("", Axis("", 0, 1), Axis("", 0.5, 1), [LINE])
    boxes = {"title": (60, 10, 700, 45), "y": (60, 50, 700, 75), "x": (60, 560, 760, 600)}
    written = draw_line_chart("Recall by think rate", X, Y, [LINE])
    for box in boxes.values():
        assert len(plain.crop(box).getcolors()) == 1
        assert len(written.crop(box).getcolors(maxcolors=1 << 20)) > 1
    labelled = Series("head", LINE.points, COLORS[0], ["12", "3", "700"])
    assert draw_line_chart("", X, Y, [labelled]).tobytes() != plain.tobytes()


def test_the_same_chart_has_the_same_bytes():
    assert (
        draw_line_chart("t", X, Y, [LINE]).tobytes() == draw_line_chart("t", X, Y, [LINE]).tobytes()
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.49, 0.71, [0.5, 0.55, 0.6, 0.65, 0.7]),
        (310, 690, [400, 500, 600]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert Axis("", low, high).ticks == pytest.approx(expected)


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1e-3, 1e6]])
def test_an_axis_holds_all_values(values):
    axis = fit_axis("", values)
    assert axis.low < min(values) <= max(values) < axis.high
    assert 2 <= len(axis.ticks) <= 12
