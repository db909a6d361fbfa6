from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tracelib.callbacks.gallery_sheet import (
    Panel,
    Record,
    Result,
    compose_sheet,
    fit_image,
    wrap_text,
)

GREEN = (43, 138, 62)
BLACK = Image.new("RGB", (56, 56), "black")
LONG = "a very long description with incomprehensibilities-and-otherwise-unbreakable-words " * 8
MISS = Result(Record("a miss", None), 0.5, False)
PANEL = Panel(
    title="scenes_task7 · hard · 10:1",
    instruction="Find it.",
    query=Record("turn it", BLACK),
    decision="thought in 3 tokens",
    think_probability=0.75,
    rationale="it turns",
    gold=Record("the gold", BLACK),
    gold_rank=None,
    results=[MISS] * 5,
)


def count_pixels(image, color) -> int:
    return int((np.asarray(image) == color).all(-1).sum())


@pytest.mark.parametrize("text", [LONG, "x" * 500, "short", ""])
@pytest.mark.parametrize("width", [40, 300])
def test_wrapped_lines_fit_and_lose_nothing_until_elided(text, width):
    from PIL import ImageFont

    whole = wrap_text(text, 12, width, max_lines=10_000)
    assert all(ImageFont.load_default(12).getlength(line) <= width for line in whole)
    assert "".join(whole).replace(" ", "") == text.replace(" ", "")
    few = wrap_text(text, 12, width, max_lines=2)
    assert len(few) == min(2, len(whole))
    assert (few[-1:] != [] and few[-1].endswith("…")) == (len(whole) > 2)
    assert all(ImageFont.load_default(12).getlength(line) <= width for line in few)


def test_letters_the_font_lacks_are_replaced():
    assert wrap_text("café – “so”", 12, 300, 1) == ['cafe - "so"']


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((56, 56), (168, 168)),
        ((28, 56), (84, 168)),
        ((20, 10), (60, 30)),
        ((1680, 840), (168, 84)),
        ((5000, 10), (168, 1)),
    ],
)
def test_pictures_are_fitted(size, expected):
    assert fit_image(Image.new("RGB", size), 168, 168).size == expected


def test_small_pictures_are_not_blurred():
    checks = Image.fromarray((np.indices((56, 56)).sum(0) % 2 * 255).astype(np.uint8))
    assert set(np.unique(np.asarray(fit_image(checks, 168, 168)))) == {0, 255}


def test_only_hits_are_green():
    hit = dataclasses.replace(MISS, is_hit=True)
    missed = compose_sheet([PANEL])
    found = compose_sheet([dataclasses.replace(PANEL, results=[MISS, hit])])
    twice = compose_sheet([dataclasses.replace(PANEL, results=[hit, hit])])
    assert count_pixels(missed, GREEN) == 0
    assert 0 < 1.5 * count_pixels(found, GREEN) < count_pixels(twice, GREEN)


def test_query_and_gold_are_drawn_in_size():
    sheet = compose_sheet([PANEL])
    assert 168**2 + 112**2 <= count_pixels(sheet, (0, 0, 0)) < 168**2 + 112**2 + 500


@pytest.mark.parametrize("num_results", [1, 5, 8])
def test_nothing_runs_over_a_panel(num_results):
    photograph = Image.new("RGB", (1200, 900), "black")
    record, text = Record(LONG, photograph), Record(LONG, None)
    results = [Result(record, -0.1, True), Result(text, -0.2, False)] * num_results
    worst = Panel(LONG, LONG, record, LONG, 0.5, LONG, text, 1, results[:num_results])
    sheet = np.asarray(compose_sheet([worst, PANEL]))
    height = compose_sheet([PANEL]).height
    assert sheet.shape[1] == 1100
    assert sheet.shape[0] - height < 800
    border = np.concatenate(
        [sheet[:20].reshape(-1, 3), sheet[:, :20].reshape(-1, 3), sheet[:, -20:].reshape(-1, 3)]
    )
    assert len(np.unique(border, axis=0)) == 1
    inner = sheet[40 : sheet.shape[0] - height - 20, 1073:1079]
    assert (inner == 255).all()


def test_panels_stand_below_each_other():
    one, two = compose_sheet([PANEL]), compose_sheet([PANEL, PANEL])
    assert two.height == 2 * one.height - 20
    assert np.array_equal(np.asarray(two)[: one.height - 20], np.asarray(one)[:-20])


def test_a_query_may_have_neither_picture_nor_router_nor_gold():
    bare = Panel("t", "", Record("", None), "bypassed", None, "", None, None, [MISS])
    assert 200 < compose_sheet([bare]).height < compose_sheet([PANEL]).height
