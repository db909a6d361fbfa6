"""What a check finds: faults, which must be mended, and notes, which are good to know."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal[
    "file", "row", "id", "qrels", "positive", "instruction", "rationale", "union pool", "picture"
]
_MAX_CHARACTERS = 600


class Finding(NamedTuple):
    """One fault or note.

    Args:
        kind: What it is about; faults are shown by kind.
        file: Path relative to the data root, with forward slashes.
        line: Line of the file, from 1, or None for the whole file.
        message: What is wrong, the value and what is allowed.
        is_fault: Whether it is a fault; otherwise it is a note.
    """

    kind: Kind
    file: str
    line: int | None
    message: str
    is_fault: bool = True

    @property
    def place(self) -> str:
        """File and line, as editors and terminals read them."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


def make_note(kind: Kind, file: str, line: int | None, message: str) -> Finding:
    """Return a note."""
    return Finding(kind, file, line, message, is_fault=False)


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> format_count(1, "fault"), format_count(2000, "fault")
    ('1 fault', '2,000 faults')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def clean_message(message: str, prefix: str) -> str:
    r"""Return a message without the prefix that repeats its place, short enough and printable.

    >>> clean_message("a.jsonl:3: did '\ud800' is bad", "a.jsonl:3: ")
    "did '\\ud800' is bad"
    """
    message = message.removeprefix(prefix)
    if len(message) > _MAX_CHARACTERS:
        message = f"{message[:_MAX_CHARACTERS]} ..."
    return message.encode("utf-8", "backslashreplace").decode()
