"""The slots of a prompt, and what fills them.

`{instruction}`, `{query}`, `{target}`, `{answer}` and `{reasoning}` are texts, `{query_image}` and
`{target_image}` become pictures where there are any. A line all of whose slots turn out empty is
left out. Other braces stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_IMAGE_SLOTS = ("query_image", "target_image")
SLOTS = ("instruction", "query", "target", "answer", "reasoning", *_IMAGE_SLOTS)
"""Every slot."""
TARGET_SLOTS = frozenset({"target", "target_image"})
"""Those that show the target."""
_SLOT = re.compile(r"\{([a-z_]+)\}")


def find_slots(user: str) -> tuple[str, ...]:
    """Return the slots of a message in order, those that are not known too.

    >>> find_slots('{query}: answer {"easy": true} or {no}')
    ('query', 'no')
    """
    return tuple(_SLOT.findall(user))


def fill_slots(user: str, values: Mapping[str, str | None]) -> str | list[dict[str, Any]]:
    r"""Return a message's content: a text, or a list of parts where there are pictures.

    Args:
        user: The message with its slots.
        values: Text, or path of a picture, of each slot; empty or None where there is none.

    >>> fill_slots("See {query_image}\nQuery: {query}\nNow.", {"query_image": None, "query": "{a}"})
    'Query: {a}\nNow.'
    """
    parts: list[dict[str, Any]] = []
    text = ""
    for pieces in _split_lines(user):
        if len(pieces) > 1 and not any(values[slot] for slot in pieces[1::2]):
            continue
        for place, piece in enumerate(pieces):
            value = values[piece] if place % 2 else piece
            if place % 2 and piece in _IMAGE_SLOTS and value:
                parts += [*_make_text(text), {"type": "image_path", "path": value}]
                text = ""
            else:
                text += value or ""
        text = text.rstrip(" ") + "\n"
    return [*parts, *_make_text(text)] if parts else text.strip()


@lru_cache(maxsize=256)
def _split_lines(user: str) -> tuple[tuple[str, ...], ...]:
    """Return the pieces of each line: text, slot, text and so on.

    All slots are found before one is filled: what fills it may have braces of its own.
    """
    return tuple(tuple(_SLOT.split(line)) for line in user.strip().splitlines())


def _make_text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text.strip()}] if text.strip() else []
