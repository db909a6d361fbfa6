"""Labels of the router that `route-labels` wrote: rationale rows with what the labels come from.

A row has, beside the keys of a rationale row, `split`, and `soft_target`: the probability that the
query should think, -1 where nobody knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracelib.data.jsonl import DataError, Row, read_rows
from tracelib.data.query_table import QueryTable
from tracelib.data.rationales import parse_rationale
from tracelib.data.records import MAX_QUERY_NUMBER, encode_id

RouteTargets = Literal["hard", "soft"]
UNKNOWN = -1


def read_route_labels(
    path: Path, queries: QueryTable, targets: RouteTargets = "hard"
) -> NDArray[Any]:
    """Return the label `[Q]` of each training query, -1 where the file has none.

    Args:
        path: File of rows that `route-labels` wrote.
        queries: All training queries, those that are held out included.
        targets: `hard` takes 1 where a query should think and 0 where not, as int64; `soft` the
            probability that it should, as float32.

    Raises:
        DataError: The file is missing, or a row breaks the format, is of another split, of no
            training query or of one that has a row already.
    """
    lines: dict[int, int] = {}
    labels: list[float] = []
    for row in read_rows(path):
        parsed = parse_rationale(row)
        if (split := row.require("split")) != queries.split:
            raise row.error(
                f"split {split!r} is not {queries.split!r}: ids are unique within a split only "
                "(data.route_labels)"
            )
        number = encode_id(parsed.query_id, MAX_QUERY_NUMBER)
        if number in lines:
            raise row.error(f"qid {parsed.query_id!r} is also in line {lines[number]}")
        lines[number] = row.line
        labels.append(parsed.difficulty if targets == "hard" else _require_soft_target(row))
    numbers = np.array(list(lines))
    for spot in np.flatnonzero(~np.isin(numbers, queries.ids))[:1].tolist():
        line = list(lines.values())[spot]
        dataset, number = divmod(int(numbers[spot]), MAX_QUERY_NUMBER)
        raise DataError(
            f"{path}:{line}: qid '{dataset}:{number}' is no query of the "
            f"{queries.split} split (data.route_labels)"
        )
    order = np.argsort(numbers)
    values = np.array(labels, dtype=np.int64 if targets == "hard" else np.float32)[order]
    places = np.searchsorted(numbers[order], queries.ids).clip(max=len(numbers) - 1)
    is_labelled = numbers[order][places] == queries.ids
    found: NDArray[Any] = np.where(is_labelled, values[places], values.dtype.type(UNKNOWN))
    return found


def _require_soft_target(row: Row) -> float:
    value = row.require("soft_target")
    if type(value) not in (int, float) or not (value == UNKNOWN or 0 <= value <= 1):
        raise row.error(f"soft_target {value!r} is neither {UNKNOWN} nor a number in 0 .. 1")
    return float(value)
