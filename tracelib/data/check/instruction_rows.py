"""The table of instructions: its lines, and the queries it has no row for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracelib.data.check.findings import Finding, clean_message
from tracelib.data.check.tree import Tree
from tracelib.data.layout import Layout
from tracelib.data.records import MAX_QUERY_NUMBER, TASK_MODALITIES, decode_id
from tracelib.prompts import format_text

_Key = tuple[str, str, str]
_NUM_TASKS = 16
"""More than there are, to pack data set and task in one integer."""


def check_instructions(tree: Tree) -> Iterator[Finding]:
    """Yield broken lines of the table, and in each file the first query of each missing row."""
    path = Layout(tree.root).instructions
    if not path.is_file():
        return
    name = path.relative_to(tree.root).as_posix()
    lines: dict[_Key, int] = {}
    for line, text in enumerate(path.read_bytes().splitlines(), 1):
        if line == 1:
            continue
        try:
            key = _parse_line(text)
        except ValueError as error:
            yield Finding("instruction", name, line, clean_message(str(error), ""))
            key = _read_key(text.decode(errors="replace"))  # so its queries are not faults too
        else:
            if key in lines:
                message = f"{key} has a row already, at line {lines[key]}"
                yield Finding("instruction", name, line, message)
        lines.setdefault(key, line)
    yield from _find_queries_without_row(tree, name, lines)


def _read_key(text: str) -> _Key:
    query_modality, candidate_modality, _, dataset_id, *_ = [
        cell.strip() for cell in [*text.split("\t"), "", "", "", ""]
    ]
    return dataset_id, query_modality, candidate_modality


def _parse_line(text: bytes) -> _Key:
    """Return data set id, query modality and candidate modality of a line.

    Raises:
        ValueError: The line breaks the format.
    """
    words = text.decode()
    key = dataset_id, *modalities = _read_key(words)
    if tuple(modalities) not in TASK_MODALITIES.values():
        raise ValueError(f"{words!r}: no task has the query and candidate modality {modalities}")
    if not dataset_id.isdecimal():
        raise ValueError(f"{words!r}: data set id {dataset_id!r}, in column 4, is no integer >= 0")
    prompts = [format_text(cell) for cell in words.split("\t")[4:] if cell.strip()]
    if not prompts:
        raise ValueError(f"{words!r}: no prompt from column 5 on")
    for prompt in prompts:
        if prompt != format_text(prompt):
            raise ValueError(f"{words!r}: a prompt begins with a quote and a blank")
    return key


def _find_queries_without_row(tree: Tree, name: str, lines: dict[_Key, int]) -> Iterator[Finding]:
    for source, table in tree.select("query"):
        known = np.flatnonzero((table.ids >= 0) & (table.task_ids >= 0))
        dataset_ids = table.ids[known] // MAX_QUERY_NUMBER
        packed = dataset_ids * _NUM_TASKS + table.task_ids[known]
        values, firsts, counts = np.unique(packed, return_index=True, return_counts=True)
        for value, first, count in zip(
            values.tolist(), known[firsts].tolist(), counts.tolist(), strict=True
        ):
            dataset_id, task_id = divmod(value, _NUM_TASKS)
            modalities = TASK_MODALITIES[task_id]
            if (str(dataset_id), *modalities) not in lines:
                query = decode_id(int(table.ids[first]), MAX_QUERY_NUMBER)
                message = (
                    f"{name} has no row for query {query!r} and {count - 1:,} more of this file: "
                    f"data set id {dataset_id}, query modality {modalities[0]!r}, candidate "
                    f"modality {modalities[1]!r}"
                )
                yield Finding("instruction", source.name, first + 1, message)
