"""The world of Scenes as values: cards of coloured shapes and the operations that edit them.

A scene is a card of 2 x 2 tiles, each one of 6 colours x 6 shapes (1,679,616 scenes). An operation
turns one scene into another; a chain of operations is what a shallow network cannot follow in one
pass and can write down step by step.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "val", "test"]
Tile = tuple[str, str]

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "star", "heart", "moon")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
MAX_CHAIN_LENGTH = 4

_MOVES = {
    "swap top row": (1, 0, 2, 3),
    "swap bottom row": (0, 1, 3, 2),
    "swap left column": (2, 1, 0, 3),
    "swap right column": (0, 3, 2, 1),
    "turn clockwise": (2, 0, 3, 1),
    "turn anticlockwise": (1, 3, 0, 2),
    "mirror left to right": (1, 0, 3, 2),
    "flip upside down": (2, 3, 0, 1),
}
_SYLLABLES = tuple(a + b for a, b in itertools.product("bdfklmnprstv", ("a", "e", "i", "o", "u")))


@dataclass(frozen=True)
class Scene:
    """A card of four tiles.

    Args:
        tiles: (colour, shape) of the top left, top right, bottom left and bottom right tile.
    """

    tiles: tuple[Tile, Tile, Tile, Tile]

    @property
    def state(self) -> str:
        """The terse words of a rationale: rows separated by a slash.

        >>> Scene((("red", "star"), ("blue", "moon"), ("red", "heart"), ("green", "circle"))).state
        'red star blue moon / red heart green circle'
        """
        words = [f"{colour} {shape}" for colour, shape in self.tiles]
        return f"{words[0]} {words[1]} / {words[2]} {words[3]}"

    @property
    def split(self) -> Split:
        """The only split this scene may appear in: 75 % train, 10 % val, 15 % test, by a hash."""
        bucket = zlib.crc32(self.state.encode()) % 100
        return "train" if bucket < 75 else "val" if bucket < 85 else "test"

    @property
    def name(self) -> str:
        """The made-up catalogue name: three syllables from a hash of the state; it may repeat."""
        number = zlib.crc32(b"name " + self.state.encode())
        count = len(_SYLLABLES)
        return "".join(_SYLLABLES[number // count**i % count] for i in range(3)).capitalize()

    def with_tile(self, position: int, tile: Tile) -> Scene:
        """Return the scene with the tile at `position` (0 .. 3) replaced."""
        tiles = list(self.tiles)
        tiles[position] = tile
        return Scene((tiles[0], tiles[1], tiles[2], tiles[3]))

    def neighbours(self) -> list[Scene]:
        """Return the 40 scenes that differ in one attribute of one tile."""
        found = []
        for position, (colour, shape) in enumerate(self.tiles):
            found += [
                self.with_tile(position, (other, shape)) for other in COLOURS if other != colour
            ]
            found += [
                self.with_tile(position, (colour, other)) for other in SHAPES if other != shape
            ]
        return found


@dataclass(frozen=True)
class Operation:
    """One edit: where each tile comes from, then at most one attribute that is set.

    Args:
        text: The edit in words.
        moves: For each new position (0 .. 3) the old position whose tile it takes.
        position: The tile whose `colour` or `shape` is set, or None.
        colour: The colour to set, or None.
        shape: The shape to set, or None.
    """

    text: str
    moves: tuple[int, int, int, int] = (0, 1, 2, 3)
    position: int | None = None
    colour: str | None = None
    shape: str | None = None

    def apply(self, scene: Scene) -> Scene:
        """Return the edited scene."""
        a, b, c, d = (scene.tiles[old] for old in self.moves)
        edited = Scene((a, b, c, d))
        if self.position is None:
            return edited
        colour, shape = edited.tiles[self.position]
        return edited.with_tile(self.position, (self.colour or colour, self.shape or shape))


def _copies() -> list[Operation]:
    operations = []
    for source, target in itertools.permutations(range(4), 2):
        moves = [0, 1, 2, 3]
        moves[target] = source
        text = f"copy {POSITIONS[source]} to {POSITIONS[target]}"
        operations.append(Operation(text, (moves[0], moves[1], moves[2], moves[3])))
    return operations


OPERATIONS: dict[str, list[Operation]] = {
    "move": [Operation(text, moves) for text, moves in _MOVES.items()],
    "paint": [
        Operation(f"paint {POSITIONS[p]} {colour}", position=p, colour=colour)
        for p in range(4)
        for colour in COLOURS
    ],
    "reshape": [
        Operation(f"make {POSITIONS[p]} a {shape}", position=p, shape=shape)
        for p in range(4)
        for shape in SHAPES
    ],
    "copy": _copies(),
}
"""All 68 operations by kind; a chain draws the kind first, so moves are as frequent as paints."""


def sample_scene(rng: Random, split: Split) -> Scene:
    """Draw a scene of `split` uniformly."""
    while True:
        a, b, c, d = ((rng.choice(COLOURS), rng.choice(SHAPES)) for _ in range(4))
        if (scene := Scene((a, b, c, d))).split == split:
            return scene


def sample_chain(rng: Random, length: int, split: Split) -> tuple[list[Operation], list[Scene]]:
    """Draw a source and `length` operations whose states are all different and all of `split`.

    Args:
        rng: Source of randomness.
        length: Number of operations, 1 .. `MAX_CHAIN_LENGTH`.
        split: Split of every state.

    Returns:
        The operations, and the `length + 1` states from source to target.
    """
    while True:
        operations: list[Operation] = []
        states = [sample_scene(rng, split)]
        for _ in range(60 * length):
            operation = rng.choice(OPERATIONS[rng.choice(tuple(OPERATIONS))])
            state = operation.apply(states[-1])
            if state.split == split and state not in states:
                operations.append(operation)
                states.append(state)
            if len(operations) == length:
                return operations, states
