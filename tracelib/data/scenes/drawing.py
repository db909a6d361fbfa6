"""Draws scenes as small pictures, each time a little different."""

from __future__ import annotations

import math
from random import Random

from PIL import Image, ImageDraw

from tracelib.data.scenes.world import Scene, Tile

_RGB = {
    "red": (221, 48, 53),
    "orange": (245, 140, 28),
    "yellow": (248, 213, 48),
    "green": (52, 164, 83),
    "blue": (52, 103, 215),
    "purple": (143, 68, 190),
}
_PAPERS = ((250, 246, 238), (238, 244, 250), (240, 248, 240), (250, 240, 244), (246, 246, 246))
_OVERSAMPLING = 3
_WIDE_PROBABILITY = 0.15
Point = tuple[float, float]


def draw_scene(scene: Scene, rng: Random) -> Image.Image:
    """Draw a scene as an RGB picture, 48 .. 69 pixels a side, now and then 72 .. 96 on one of them.

    Paper, size, place, tilt and shade vary with `rng`; the tiles' colours, shapes and order do not.
    """
    sides = [rng.randint(48, 69), rng.randint(48, 69)]
    if rng.random() < _WIDE_PROBABILITY:
        sides[rng.randrange(2)] = rng.randint(72, 96)
    width, height = (side * _OVERSAMPLING for side in sides)
    image = Image.new("RGB", (width, height), rng.choice(_PAPERS))
    draw = ImageDraw.Draw(image)
    for position, tile in enumerate(scene.tiles):
        radius = min(width, height) * rng.uniform(0.17, 0.2)
        x = width * (0.25 + 0.5 * (position % 2)) + rng.uniform(-0.1, 0.1) * radius
        y = height * (0.25 + 0.5 * (position // 2)) + rng.uniform(-0.1, 0.1) * radius
        _draw_tile(
            draw, tile, (x, y), radius, math.radians(rng.uniform(-9, 9)), rng.uniform(0.92, 1.05)
        )
    return image.resize((sides[0], sides[1]), Image.Resampling.BOX)


def _draw_tile(
    draw: ImageDraw.ImageDraw,
    tile: Tile,
    centre: Point,
    radius: float,
    tilt: float,
    brightness: float,
) -> None:
    colour, shape = tile
    red, green, blue = (min(255, round(channel * brightness)) for channel in _RGB[colour])
    edge = (red * 2 // 3, green * 2 // 3, blue * 2 // 3)
    cos, sin = math.cos(tilt), math.sin(tilt)
    outline = [
        (centre[0] + radius * (x * cos - y * sin), centre[1] + radius * (x * sin + y * cos))
        for x, y in _OUTLINES[shape]
    ]
    shadow = [(x + 0.1 * radius, y + 0.12 * radius) for x, y in outline]
    draw.polygon(shadow, fill=(205, 203, 200))
    draw.polygon(outline, fill=(red, green, blue))
    draw.line([*outline, outline[0]], fill=edge, width=max(1, round(radius * 0.09)), joint="curve")


def _arc(
    x: float, y: float, radius: float, start: float, end: float, steps: int = 16
) -> list[Point]:
    """Points on a circle from `start` to `end` degrees, measured clockwise from the right."""
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    angles = [math.radians(36 * i - 90) for i in range(10)]
    return [
        ((1.08, 0.46)[i % 2] * math.cos(a), (1.08, 0.46)[i % 2] * math.sin(a))
        for i, a in enumerate(angles)
    ]


_OUTLINES: dict[str, list[Point]] = {
    "circle": _arc(0, 0, 0.95, 0, 360, 32),
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "star": _star(),
    "heart": [(0, 1), *_arc(-0.48, -0.3, 0.52, 160, 355), *_arc(0.48, -0.3, 0.52, 185, 380)],
    "moon": [*_arc(0.1, 0, 1, 50, 310), *reversed(_arc(0.5, 0, 0.8, 72, 288))],
}
