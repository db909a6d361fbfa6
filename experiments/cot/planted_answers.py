"""Right answers to hard queries of Scenes, and wrong ones that no rule can tell from them.

Every wrong answer has the form of a right one, and all but a vague one name four shapes of a card.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from tracelib.construction.queries import SourceQuery
from tracelib.data.rationales import RationaleRow
from tracelib.data.scenes.world import Scene, Tile

RIGHT = "right"
WRONG_KINDS = (
    "attribute_off",
    "neighbour_card",
    "swapped_tiles",
    "state_before_last",
    "other_query",
    "vague",
)
"""One colour or shape differs; the card of the query's twin, whose source differs in one attribute;
two tiles are exchanged; the last edit is not made; the answer to some other query; too general."""
_VAGUE = (
    "a card with four coloured shapes.",
    "two shapes on top / two shapes below.",
    "{0} and another shape / two more shapes.",
    "{0} {1} / some other shapes.",
)
_STATE = re.compile(r"\d+ ([a-z /]+)\.")


@dataclass(frozen=True)
class PlantedAnswer:
    """An answer that is known to be right or wrong.

    Args:
        query: The query.
        kind: `right`, or which of `WRONG_KINDS`.
        reasoning: The right thought.
        answer: The answer.
    """

    query: SourceQuery
    kind: str
    reasoning: str
    answer: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is right."""
        return self.kind == RIGHT

    @property
    def text(self) -> str:
        """What a teacher would have written."""
        return f"<reasoning>{self.reasoning}</reasoning><answer>{self.answer}</answer>"


def read_states(row: RationaleRow) -> list[Scene]:
    """Return the states of a thought, from the source to the target."""
    return [_parse_state(text) for text in _STATE.findall(f"{row.reasoning} {row.answer}")]


def plant_answers(
    queries: Iterable[SourceQuery], rows: Mapping[str, RationaleRow], num: int, seed: int
) -> list[PlantedAnswer]:
    """Return `num` answers to as many hard queries: half of them right, the others of each kind.

    Args:
        queries: Queries; those without a thought are passed over.
        rows: Their reference rationales, by query id.
        num: How many answers, a multiple of twice the wrong kinds.
        seed: Seed of the choice.

    Raises:
        ValueError: `num` is no such multiple, or more than there are hard queries for.
    """
    step = 2 * len(WRONG_KINDS)
    if num < step or num % step:
        raise ValueError(f"num is {num}, no positive multiple of {step}")
    rng = Random(seed)
    states = {key: read_states(row) for key, row in rows.items() if row.difficulty == 1}
    hard = [query for query in queries if query.query_id in states]
    rng.shuffle(hard)
    wanted = [RIGHT] * (num // 2) + [*WRONG_KINDS] * (num // step)
    planted = []
    for kind in wanted:
        while hard:
            query = hard.pop()
            chain = states[query.query_id]
            if answer := _write_answer(kind, query, chain, states, rng):
                reasoning = rows[query.query_id].reasoning or ""
                number = f"{len(chain) - 1} "
                planted.append(PlantedAnswer(query, kind, reasoning, number + answer))
                break
    if len(planted) < num:
        raise ValueError(f"num is {num}; the hard queries here are enough for {len(planted)}")
    return planted


def _write_answer(
    kind: str,
    query: SourceQuery,
    chain: list[Scene],
    states: Mapping[str, list[Scene]],
    rng: Random,
) -> str | None:
    """Return an answer of a kind without its number, or None where the query allows none."""
    target = chain[-1]
    if kind == "vague":
        tiles = [" ".join(tile) for tile in target.tiles]
        return rng.choice(_VAGUE).format(*tiles)
    if kind == "neighbour_card":
        twin = states.get(_name_twin(query.query_id))
        scene = twin[-1] if twin else target
    elif kind == "swapped_tiles":
        first, second = rng.sample(range(4), 2)
        tiles = target.tiles
        scene = target.with_tile(first, tiles[second]).with_tile(second, tiles[first])
    else:
        scene = {
            RIGHT: lambda: target,
            "attribute_off": lambda: rng.choice(target.neighbours()),
            "state_before_last": lambda: chain[-2],
            "other_query": lambda: states[rng.choice(list(states))][-1],
        }[kind]()
    return f"{scene.state}." if (scene == target) == (kind == RIGHT) else None


def _name_twin(query_id: str) -> str:
    """Return the other query of a pair with the same edits: train queries come in such pairs."""
    dataset, number = query_id.split(":")
    return f"{dataset}:{(int(number) - 1 ^ 1) + 1}"


def _parse_state(text: str) -> Scene:
    words = text.replace(" /", "").split()
    a, b, c, d = (_make_tile(words[i : i + 2]) for i in range(0, 8, 2))
    return Scene((a, b, c, d))


def _make_tile(words: list[str]) -> Tile:
    colour, shape = words
    return colour, shape
