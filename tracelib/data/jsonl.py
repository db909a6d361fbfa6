"""Strict JSON Lines: every error names file, line and value."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTROL_TOKEN = re.compile(r"<\|[^\s<>|]+\|>")


class DataError(ValueError):
    """A file of a data tree breaks its format."""


@dataclass(frozen=True)
class Row:
    """One JSON object and the place it was read from.

    Args:
        fields: The object.
        path: Its file.
        line: Its line, from 1.
    """

    fields: dict[str, Any]
    path: Path
    line: int

    def error(self, message: str) -> DataError:
        """Return an error that begins with file and line, to be raised."""
        return DataError(f"{self.path}:{self.line}: {message}")

    def require(self, name: str) -> Any:
        """Return a field.

        Raises:
            DataError: It is missing or null.
        """
        if (value := self.fields.get(name)) is None:
            raise self.error(f"field {name!r} is missing or null; it has {sorted(self.fields)}")
        return value

    def require_int(self, name: str, allowed: Iterable[int]) -> int:
        """Return an integer field.

        Raises:
            DataError: It is missing, not an integer, or none of `allowed`.
        """
        value = self.require(name)
        if type(value) is not int or value not in allowed:
            raise self.error(f"{name} {value!r} is none of {list(allowed)}")
        return value

    def get_text(self, name: str) -> str:
        """Return a text field; missing, null, empty and the string `null` all mean `""`.

        Raises:
            DataError: It is no string.
        """
        value = self.fields.get(name)
        if value is None or value == "null":
            return ""
        if not isinstance(value, str):
            raise self.error(f"{name} {value!r} is no string")
        return value


def parse_row(text: bytes, path: Path, line: int) -> Row:
    """Parse one line.

    Raises:
        DataError: It is no JSON object in UTF-8.
    """
    try:
        fields = json.loads(text.decode())
        if b"\\ud" in text or b"\\uD" in text:  # the half of a character would fail later on
            json.dumps(fields, ensure_ascii=False).encode()
    except (json.JSONDecodeError, UnicodeError) as error:
        raise DataError(f"{path}:{line}: {text[:80]!r} is no JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path}:{line}: {text[:80]!r} is no JSON object")
    return Row(fields, path, line)


def read_rows(path: Path) -> Iterator[Row]:
    """Read the JSON objects of a file, one a line.

    Raises:
        DataError: The file is missing or empty, or a line is no JSON object in UTF-8.
    """
    line = 0
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, 1):
                yield parse_row(text, path, line)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing") from error
    if not line:
        raise DataError(f"{path}: the file is empty; at least one line is needed")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON objects one a line: the file is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def strip_control_tokens(text: str) -> str:
    """Put a blank in place of every `<|...|>` marker: no record may inject a control token.

    Carriage returns go first, as formatting would delete them later and so complete a marker.

    >>> strip_control_tokens("<|image_pad|>What is it?<|im_end|>").strip()
    'What is it?'
    """
    return _CONTROL_TOKEN.sub(" ", text.replace("\r", ""))
