"""Instruction rewrites per MMEB subset, as the user's YAML gives them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tracelib.data.jsonl import DataError


@dataclass(frozen=True)
class Rewrite:
    """How the texts of one side of one subset are changed, in this order.

    Args:
        value_map: New texts of texts that equal a key.
        original: Words to replace wherever they stand, or None.
        replacement: What they become.
        prefix_add: Put before the text.
        suffix_add: Put after it.
    """

    value_map: dict[str, str] = field(default_factory=dict)
    original: str | None = None
    replacement: str = ""
    prefix_add: str = ""
    suffix_add: str = ""

    def apply(self, text: str) -> str:
        r"""Return a text rewritten; it ends in a newline (RGE).

        >>> Rewrite(original="Represent", replacement="Describe").apply("Represent it.")
        'Describe it.\n'
        """
        text = self.value_map.get(text, text)
        if self.original:
            text = text.replace(self.original, self.replacement)
        text = f"{self.prefix_add}{text}{self.suffix_add}"
        return text if text.endswith("\n") else f"{text}\n"

    @property
    def conditions(self) -> tuple[str, ...]:
        """The parts that a text may fail to match: `value_map`, `original`."""
        parts = {"value_map": self.value_map, "original": self.original}
        return tuple(name for name, part in parts.items() if part)

    def find_unmatched(self, text: str) -> list[str]:
        """Return the conditions that leave a text alone.

        >>> Rewrite(value_map={"Yes": "It does."}, original="No").find_unmatched("Yes")
        ['original']
        """
        unmatched = ["value_map"] if self.value_map and text not in self.value_map else []
        if self.original and self.original not in self.value_map.get(text, text):
            unmatched.append("original")
        return unmatched


def load_rewrites(path: Path, subsets: Collection[str]) -> dict[str, Rewrite]:
    """Read a YAML file that maps subsets to rewrites; its keys are those of `Rewrite`.

    Args:
        path: The file.
        subsets: Names that may occur.

    Raises:
        DataError: The file is missing or no such map, a subset or key is unknown, or a value is no
            text.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing") from error
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no YAML map in UTF-8: {error}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: {str(content)[:80]!r} is no map from subsets to rewrites")
    for subset in content:
        if subset not in subsets:
            raise DataError(f"{path}: subset {subset!r} is unknown; known are {sorted(subsets)}")
    return {
        str(name): _parse_rewrite(f"{path}: {name}", values) for name, values in content.items()
    }


def _parse_rewrite(where: str, values: Any) -> Rewrite:
    if not isinstance(values, dict) or not values:
        raise DataError(f"{where}: {values!r} is no map of a rewrite's keys")
    known = [f.name for f in fields(Rewrite)]
    for key, value in values.items():
        if key not in known:
            raise DataError(f"{where}: key {key!r} is unknown; known are {known}")
        texts = [value]
        if key == "value_map":
            if not isinstance(value, dict) or not value:
                raise DataError(f"{where}: value_map {value!r} is no map of texts")
            texts = [*value, *value.values()]
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"{where}: {key} {text!r} is no text; put it in quotes")
    if values.get("original") == "" or ("replacement" in values) != ("original" in values):
        raise DataError(
            f"{where}: original {values.get('original')!r} and replacement "
            f"{values.get('replacement')!r}: give both, the first not empty"
        )
    return Rewrite(**values)
