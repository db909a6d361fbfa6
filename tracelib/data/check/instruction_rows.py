"""The table of instructions: its lines, and the queries it has no row for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracelib.data.check.findings import Finding, clean_message
from tracelib.data.check.tree import Tree
from tracelib.data.instructions import (
    InstructionKey,
    parse_instruction_line,
    read_instruction_key,
)
from tracelib.data.jsonl import DataError
from tracelib.data.layout import Layout
from tracelib.data.records import MAX_QUERY_NUMBER, TASK_MODALITIES, decode_id

_NUM_TASKS = 16
"""More than there are, to pack data set and task in one integer."""


def check_instructions(tree: Tree) -> Iterator[Finding]:
    """Yield broken lines of the table, and in each file the first query of each missing row."""
    path = Layout(tree.root).instructions
    if not path.is_file():
        return
    name = path.relative_to(tree.root).as_posix()
    lines: dict[InstructionKey, int] = {}
    for line, text in enumerate(path.read_bytes().splitlines()[1:], 2):
        try:
            key, _ = parse_instruction_line(text)
        except DataError as error:
            yield Finding("instruction", name, line, clean_message(str(error), ""))
            key = read_instruction_key(text)  # so its queries are not faults too
        else:
            if key in lines:
                message = f"{key} has a row already, at line {lines[key]}"
                yield Finding("instruction", name, line, message)
        lines.setdefault(key, line)
    yield from _find_queries_without_row(tree, name, lines)


def _find_queries_without_row(
    tree: Tree, name: str, lines: dict[InstructionKey, int]
) -> Iterator[Finding]:
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
