"""Scenes in words: captions, catalogue passages, edits, recipes, rationales, instructions."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tracelib.data.scenes.world import Operation, Scene

INSTRUCTIONS: dict[tuple[str, str], tuple[str, str, str, str]] = {
    ("text", "image"): (
        "find the picture of this card",
        "which picture shows this card",
        "fetch the picture described here",
        "match this description to a picture",
    ),
    ("text", "text"): (
        "find the catalogue passage on this card",
        "which passage is about this card",
        "fetch the passage described here",
        "match this description to a passage",
    ),
    ("text", "image,text"): (
        "find the picture and passage of this card",
        "which catalogue page shows this card",
        "fetch the catalogue page described here",
        "match this description to a catalogue page",
    ),
    ("image", "text"): (
        "find the caption of this picture",
        "which caption fits this picture",
        "fetch the words for this picture",
        "match this picture to a caption",
    ),
    ("image", "image"): (
        "find another drawing of this card",
        "which picture shows the same card",
        "fetch the same card drawn again",
        "match this picture to its twin",
    ),
    ("image,text", "text"): (
        "find the caption of this card after the edits",
        "which caption fits once the edits are made",
        "fetch the words for the edited card",
        "match the edited card to a caption",
    ),
    ("image,text", "image"): (
        "find the picture of this card after the edits",
        "which picture shows the card once the edits are made",
        "fetch the picture of the edited card",
        "match the edited card to a picture",
    ),
    ("image,text", "image,text"): (
        "find the picture and passage of this card after the edits",
        "which catalogue page shows the card once the edits are made",
        "fetch the catalogue page of the edited card",
        "match the edited card to a catalogue page",
    ),
}
"""The four prompts of each (query modality, candidate modality), written for this benchmark."""


def _with_article(colour: str, shape: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def write_edits(operations: Sequence[Operation]) -> str:
    """Write a chain as a numbered list: `1 turn clockwise, 2 paint top left red`."""
    return ", ".join(f"{number} {operation.text}" for number, operation in enumerate(operations, 1))


def write_caption(scene: Scene, rng: Random) -> str:
    """Write one of three wordings of a caption."""
    a, b, c, d = (_with_article(colour, shape) for colour, shape in scene.tiles)
    return rng.choice(
        (
            f"{a} and {b} above {c} and {d}",
            f"{c} and {d} below {a} and {b}",
            f"on top {a} beside {b}, under them {c} beside {d}",
        )
    )


def write_passage(scene: Scene) -> str:
    """Write the catalogue passage of a scene, which begins with its made-up name."""
    a, b, c, d = (f"{colour} {shape}" for colour, shape in scene.tiles)
    return f"{scene.name}. Card with {a} and {b} in the first row, {c} and {d} in the second."


def write_recipe(caption: str, operations: Sequence[Operation]) -> str:
    """Write a caption that has to be worked out: a starting card and the edits to make to it."""
    return f"{caption}: {write_edits(operations)}"


def write_rationale(states: Sequence[Scene]) -> tuple[str, str]:
    """Write the chain of thought of a chain: (reasoning, answer).

    The reasoning numbers the states from the source on, the answer is the last one. It is derived
    from the query alone.
    """
    steps = [f"{number} {state.state}." for number, state in enumerate(states)]
    return " ".join(steps[:-1]), steps[-1]


def write_whole_rationale(states: Sequence[Scene]) -> tuple[str, str]:
    """Write what leads from a query to its target: (reasoning, answer), none of it empty.

    It is the chain of thought of `write_rationale`. A card that is read as it is has but the number
    of its state for a reasoning, so that both together are how the backbone reads a card.
    """
    reasoning, answer = write_rationale(states)
    return (reasoning, answer) if reasoning else ("0", answer.removeprefix("0 "))
