"""M-BEIR's columns, a data set and a task each: their order, their task, their headline depth."""

from __future__ import annotations

MBEIR_COLUMNS = (
    "visualnews_task0",
    "mscoco_task0",
    "fashion200k_task0",
    "webqa_task1",
    "edis_task2",
    "webqa_task2",
    "visualnews_task3",
    "mscoco_task3",
    "fashion200k_task3",
    "nights_task4",
    "oven_task6",
    "infoseek_task6",
    "fashioniq_task7",
    "cirr_task7",
    "oven_task8",
    "infoseek_task8",
)
"""The sixteen columns of test and val, in the order of every table."""

TASK_NAMES = {
    0: "text -> image",
    1: "text -> text",
    2: "text -> image,text",
    3: "image -> text",
    4: "image -> image",
    6: "image,text -> text",
    7: "image,text -> image",
    8: "image,text -> image,text",
}
"""Modalities of query and candidate by task id; task 5 is declared and never used."""

_DEEP_COLUMNS = ("fashion200k_task0", "fashion200k_task3", "fashioniq_task7")


def headline_k(column: str) -> int:
    """Return the k of the Recall@k that a column is reported by.

    >>> headline_k("cirr_task7"), headline_k("fashioniq_task7")
    (5, 10)
    """
    return 10 if column in _DEEP_COLUMNS else 5


def read_task_id(column: str) -> int:
    """Return the task of a column from its name.

    Raises:
        ValueError: The name does not end in `_task` and the id of a task that is used.

    >>> read_task_id("cirr_task7")
    7
    """
    digits = column.rpartition("_task")[2]
    if not digits.isdecimal() or int(digits) not in TASK_NAMES:
        raise ValueError(f"column {column!r} must end in _task<id>, id in {list(TASK_NAMES)}")
    return int(digits)


def canonical_place(column: str) -> int:
    """Return where a column stands among M-BEIR's sixteen; others follow, all at one place.

    >>> canonical_place("edis_task2"), canonical_place("scenes_task0")
    (4, 16)
    """
    return MBEIR_COLUMNS.index(column) if column in MBEIR_COLUMNS else len(MBEIR_COLUMNS)
