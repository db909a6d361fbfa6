"""The rows of an M-BEIR tree: parses and checks one query, candidate or qrels line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tracelib.data.jsonl import Row, strip_control_tokens
from tracelib.types import Candidate, Query

TASK_MODALITIES: dict[int, tuple[str, str]] = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}
"""Query and candidate modality of each live task; task 5 is declared in M-BEIR and never used."""
MAX_QUERY_NUMBER = 500_000
MAX_CANDIDATE_NUMBER = 10_000_000
_ID = re.compile(r"(0|[1-9][0-9]{0,4}):([1-9][0-9]*)", re.ASCII)


def parse_query(row: Row, dataset: str, file_task: int | None) -> Query:
    """Parse a query, with its raw text and without instruction.

    Args:
        row: The row.
        dataset: Data set in the column's name.
        file_task: Task that the file's name gives, or None.

    Raises:
        DataError: The row breaks the format.
    """
    task_id = _parse_task(row, file_task)
    text, image_path = _parse_content(row, "query_txt", "query_img_path", "query_modality")
    if row.fields["query_modality"] != TASK_MODALITIES[task_id][0]:
        modality = row.fields["query_modality"]
        expected = TASK_MODALITIES[task_id][0]
        raise row.error(f"query_modality {modality!r} is not {expected!r}, that of task {task_id}")
    positive_ids = parse_candidate_ids(row, "pos_cand_list")
    if not positive_ids:
        raise row.error("pos_cand_list is missing or empty; a query needs a positive")
    negative_ids = parse_candidate_ids(row, "neg_cand_list")
    return Query(
        query_id=parse_id(row, row.require("qid"), MAX_QUERY_NUMBER),
        column=f"{dataset}_task{task_id}",
        task_id=task_id,
        text=text,
        image_path=image_path,
        instruction="",
        positive_ids=positive_ids,
        negative_ids=tuple(key for key in negative_ids if key not in positive_ids),
    )


def parse_candidate(row: Row) -> Candidate:
    """Parse a candidate, with its raw text.

    Raises:
        DataError: The row breaks the format.
    """
    candidate_id = parse_id(row, row.require("did"), MAX_CANDIDATE_NUMBER)
    text, image_path = _parse_content(row, "txt", "img_path", "modality")
    return Candidate(candidate_id, text, image_path, row.fields["modality"])


def parse_qrels_line(row: Row, line: str) -> tuple[str, str, bool]:
    """Parse a qrels line: query id, candidate id, whether it is relevant.

    Raises:
        DataError: The line breaks the format.
    """
    cells = line.split()
    if len(cells) != 5:
        raise row.error(f"{line!r} has {len(cells)} columns, not the 5 of 'qid 0 did 1 task_id'")
    query_id = parse_id(row, cells[0], MAX_QUERY_NUMBER)
    candidate_id = parse_id(row, cells[2], MAX_CANDIDATE_NUMBER)
    if not cells[3].isdecimal():
        raise row.error(f"relevance {cells[3]!r} is no integer >= 0")
    return query_id, candidate_id, int(cells[3]) > 0


def parse_candidate_ids(row: Row, name: str) -> tuple[str, ...]:
    """Return a list of ids, given as strings or as `{"did": id}`, which M-BEIR's card shows.

    Raises:
        DataError: It is no list of candidate ids.
    """
    values = row.fields.get(name) or []
    if not isinstance(values, list):
        raise row.error(f"{name} {values!r} is no list")
    ids = (value.get("did") if isinstance(value, dict) else value for value in values)
    return tuple(dict.fromkeys(parse_id(row, value, MAX_CANDIDATE_NUMBER) for value in ids))


def parse_id(row: Row, value: object, limit: int) -> str:
    """Return an id, checked: a number beyond its limit would alias into the next data set.

    Raises:
        DataError: It is not of the form `D:N`, or D is not in 0 .. 99999, or N is not in
            1 .. `limit` - 1.
    """
    match = _ID.fullmatch(value) if isinstance(value, str) else None
    if not match or int(match[2]) >= limit:
        raise row.error(f"id {value!r} is not 'D:N' with N in 1 .. {limit - 1} and D in 0 .. 99999")
    return match[0]


def encode_id(name: str, limit: int) -> int:
    """Return M-BEIR's integer form of an id.

    Args:
        name: A checked id `D:N`.
        limit: `MAX_QUERY_NUMBER` or `MAX_CANDIDATE_NUMBER`.

    >>> encode_id("5:1", MAX_QUERY_NUMBER), encode_id("6:7", MAX_CANDIDATE_NUMBER)
    (2500001, 60000007)
    """
    dataset_id, number = name.split(":")
    return int(dataset_id) * limit + int(number)


def decode_id(number: int, limit: int) -> str:
    """Return the id `D:N` of M-BEIR's integer form.

    >>> decode_id(2500001, MAX_QUERY_NUMBER), decode_id(60000007, MAX_CANDIDATE_NUMBER)
    ('5:1', '6:7')
    """
    return f"{number // limit}:{number % limit}"


def decode_ids(numbers: Iterable[int], limit: int) -> tuple[str, ...]:
    """Return the ids `D:N` of several integers, as `decode_id` does."""
    return tuple([f"{number // limit}:{number % limit}" for number in numbers])


def _parse_task(row: Row, file_task: int | None) -> int:
    if row.fields.get("task_id") is None:
        if file_task is None:
            raise row.error("task_id is missing, and the file's name gives none")
        row.fields["task_id"] = file_task
    task_id = row.require_int("task_id", TASK_MODALITIES)
    if file_task not in (None, task_id):
        raise row.error(f"task_id {task_id} in a file of task {file_task}")
    return task_id


def _parse_content(
    row: Row, text_name: str, image_name: str, modality_name: str
) -> tuple[str, str | None]:
    """Return text and image path, checked against the modality that the row claims."""
    text = row.get_text(text_name)
    image_path = row.get_text(image_name) or None
    modality = row.require(modality_name)
    expected = ",".join(["image"] * bool(image_path) + ["text"] * bool(text.strip()))
    if modality != expected:
        raise row.error(
            f"{modality_name} {modality!r} does not fit {text_name} {text[:40]!r} "
            f"and {image_name} {image_path!r}"
        )
    return strip_control_tokens(text), image_path
