"""World, wording and drawing of Scenes."""

import zlib
from collections import Counter
from random import Random

import pytest

from tracelib.data.records import TASK_MODALITIES
from tracelib.data.scenes import wording
from tracelib.data.scenes.drawing import draw_scene
from tracelib.data.scenes.world import (
    COLOURS,
    OPERATIONS,
    POSITIONS,
    SHAPES,
    Scene,
    sample_chain,
    sample_scene,
)
from tracelib.prompts import format_text

A, B, C, D = ("red", "star"), ("orange", "moon"), ("blue", "heart"), ("green", "circle")
SCENE = Scene((A, B, C, D))
BY_TEXT = {operation.text: operation for kind in OPERATIONS.values() for operation in kind}


def follow(scene, *texts):
    for text in texts:
        scene = BY_TEXT[text].apply(scene)
    return scene


@pytest.mark.parametrize(
    ("text", "tiles"),
    [
        ("swap top row", (B, A, C, D)),
        ("swap bottom row", (A, B, D, C)),
        ("swap left column", (C, B, A, D)),
        ("swap right column", (A, D, C, B)),
        ("turn clockwise", (C, A, D, B)),
        ("turn anticlockwise", (B, D, A, C)),
        ("mirror left to right", (B, A, D, C)),
        ("flip upside down", (C, D, A, B)),
        ("paint top right purple", (A, ("purple", "moon"), C, D)),
        ("make bottom left a square", (A, B, ("blue", "square"), D)),
        ("copy top left to bottom right", (A, B, C, A)),
    ],
)
def test_operation_does_what_it_says(text, tiles):
    assert follow(SCENE, text) == Scene(tiles)


def test_operations_have_their_closed_forms():
    assert follow(SCENE, *["turn clockwise"] * 4) == SCENE
    assert follow(SCENE, *["turn clockwise"] * 2) != SCENE
    assert follow(SCENE, "turn clockwise", "turn anticlockwise") == SCENE
    half_turn = follow(SCENE, "mirror left to right", "flip upside down")
    assert half_turn == follow(SCENE, *["turn anticlockwise"] * 2)
    involutions = [text for text in BY_TEXT if text.startswith(("swap", "mirror", "flip"))]
    assert len(involutions) == 6
    for text in involutions:
        assert follow(SCENE, text) != SCENE
        assert follow(SCENE, text, text) == SCENE


def test_every_paint_reshape_and_copy_changes_its_tile_alone():
    assert {kind: len(operations) for kind, operations in OPERATIONS.items()} == {
        "move": 8,
        "paint": 24,
        "reshape": 24,
        "copy": 12,
    }
    assert len(BY_TEXT) == 68
    for position, place in enumerate(POSITIONS):
        colour, shape = SCENE.tiles[position]
        for other in COLOURS:
            assert follow(SCENE, f"paint {place} {other}") == SCENE.with_tile(
                position, (other, shape)
            )
        for other in SHAPES:
            assert follow(SCENE, f"make {place} a {other}") == SCENE.with_tile(
                position, (colour, other)
            )
        for source, tile in zip(POSITIONS, SCENE.tiles, strict=True):
            if source != place:
                copied = follow(SCENE, f"copy {source} to {place}")
                assert copied == SCENE.with_tile(position, tile)


def test_neighbours_differ_in_one_attribute():
    neighbours = SCENE.neighbours()
    assert len(set(neighbours)) == 40
    for neighbour in neighbours:
        pairs = zip(SCENE.tiles, neighbour.tiles, strict=True)
        assert sum(x != y for old, new in pairs for x, y in zip(old, new, strict=True)) == 1


def test_splits_have_their_shares_and_depend_on_the_state_alone():
    rng = Random(0)
    draw = [(rng.choice(COLOURS), rng.choice(SHAPES)) for _ in range(40000)]
    scenes = [Scene(tuple(draw[i : i + 4])) for i in range(0, 40000, 4)]
    shares = {split: count / 10000 for split, count in Counter(s.split for s in scenes).items()}
    assert shares == pytest.approx({"train": 0.75, "val": 0.1, "test": 0.15}, abs=0.015)
    for scene in scenes[:50]:
        bucket = zlib.crc32(scene.state.encode()) % 100
        assert scene.split == ("train" if bucket < 75 else "val" if bucket < 85 else "test")


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("length", [1, 4])
def test_chain_has_different_states_of_one_split(split, length):
    rng = Random(length)
    for _ in range(20):
        operations, states = sample_chain(rng, length, split)
        assert (len(operations), len(states)) == (length, length + 1)
        assert len(set(states)) == len(states)
        assert {state.split for state in states} == {split} == {sample_scene(rng, split).split}
        for operation, before, after in zip(operations, states, states[1:], strict=False):
            assert operation.apply(before) == after


def test_names_depend_on_the_state():
    names = {neighbour.name for neighbour in SCENE.neighbours()}
    assert len(names) > 35
    assert SCENE.name == Scene((A, B, C, D)).name
    assert all(name.istitle() and len(name) == 6 for name in names)


def test_captions_have_three_wordings_that_agree():
    captions = {wording.write_caption(SCENE, Random(seed)) for seed in range(30)}
    assert captions == {
        "a red star and an orange moon above a blue heart and a green circle",
        "a blue heart and a green circle below a red star and an orange moon",
        "on top a red star beside an orange moon, under them a blue heart beside a green circle",
    }


def test_other_texts():
    assert wording.write_passage(SCENE) == (
        f"{SCENE.name}. Card with red star and orange moon in the first row, "
        "blue heart and green circle in the second."
    )
    operations = [BY_TEXT["turn clockwise"], BY_TEXT["paint top left red"]]
    assert wording.write_edits(operations) == "1 turn clockwise, 2 paint top left red"
    assert wording.write_recipe("a card", operations) == (
        "a card: 1 turn clockwise, 2 paint top left red"
    )
    turned = follow(SCENE, "turn clockwise")
    assert wording.write_rationale([SCENE, turned, follow(turned, "swap top row")]) == (
        "0 red star orange moon / blue heart green circle. "
        "1 blue heart red star / green circle orange moon.",
        "2 red star blue heart / green circle orange moon.",
    )


def test_every_task_has_four_prompts_of_its_own():
    assert set(wording.INSTRUCTIONS) == set(TASK_MODALITIES.values())
    prompts = [prompt for row in wording.INSTRUCTIONS.values() for prompt in row]
    assert len(set(prompts)) == 4 * len(TASK_MODALITIES)
    assert not any(
        "\t" in prompt or format_text(prompt)[:-1].lower() != prompt for prompt in prompts
    )


def test_drawing_depends_on_scene_and_rng_alone():
    image = draw_scene(SCENE, Random(3))
    assert image.mode == "RGB"
    assert image.tobytes() == draw_scene(SCENE, Random(3)).tobytes()
    assert image.tobytes() != draw_scene(SCENE, Random(4)).tobytes()
    others = {draw_scene(neighbour, Random(3)).tobytes() for neighbour in SCENE.neighbours()}
    assert len(others - {image.tobytes()}) == 40


def test_sides_stay_in_their_range():
    sizes = [draw_scene(SCENE, Random(seed)).size for seed in range(200)]
    assert all(48 <= min(size) <= 69 and max(size) <= 96 for size in sizes)
    wide = [size for size in sizes if max(size) > 69]
    assert all(max(size) >= 72 for size in wide)
    assert 10 <= len(wide) <= 60


def test_each_tile_is_in_its_place_and_colour():
    palette = {
        "red": (220, 50, 55),
        "orange": (245, 140, 30),
        "yellow": (250, 215, 50),
        "green": (50, 165, 85),
        "blue": (50, 100, 215),
        "purple": (145, 70, 190),
    }
    rng = Random(0)
    for _ in range(60):
        scene = Scene(
            tuple((rng.choice(COLOURS), rng.choice(("circle", "square"))) for _ in range(4))
        )
        image = draw_scene(scene, rng)
        for position, (colour, _) in enumerate(scene.tiles):
            x = (0.25 + 0.5 * (position % 2)) * image.width
            y = (0.25 + 0.5 * (position // 2)) * image.height
            pixel = image.getpixel((int(x), int(y)))
            distance = {
                name: sum((p - q) ** 2 for p, q in zip(pixel, rgb, strict=True))
                for name, rgb in palette.items()
            }
            assert min(distance, key=distance.get) == colour
