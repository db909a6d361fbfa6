"""One line of a file as what the check keeps of it: integers, and remarks on what is tolerated."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from tracelib.data.check.sources import Source, SourceKind
from tracelib.data.jsonl import Row, parse_row
from tracelib.data.rationales import parse_rationale
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    TASK_MODALITIES,
    encode_id,
    parse_candidate,
    parse_qrels_line,
    parse_query,
)

LONG_TEXT = 2048
"""Characters: about the 512 tokens that texts are cut to by default."""
CANDIDATE_MODALITIES = ("text", "image", "image,text")
NO_TASK = "without task_id; that of the file's name is taken"
OBJECT_IDS = "with ids given as objects; their did is taken"
NULL_TEXT = 'with the string "null"; it is taken as null'
BOTH_ROLES = "with a candidate both positive and negative; it is taken as positive"
LONG = f"with a text of more than {LONG_TEXT} characters; it is cut when used"

_QUERY_ID = rb'"qid"\s*:\s*"(\d{1,5}):(\d{1,6})"'
_CANDIDATE_ID = rb'"did"\s*:\s*"(\d{1,5}):(\d{1,8})"'
_SALVAGE: dict[SourceKind, tuple[bytes, int]] = {
    "query": (_QUERY_ID, MAX_QUERY_NUMBER),
    "rationales": (_QUERY_ID, MAX_QUERY_NUMBER),
    "pool": (_CANDIDATE_ID, MAX_CANDIDATE_NUMBER),
    "union_pool": (_CANDIDATE_ID, MAX_CANDIDATE_NUMBER),
    "qrels": (rb"^\s*(\d{1,5}):(\d{1,6})\s", MAX_QUERY_NUMBER),
}


class Entry(NamedTuple):
    """What is kept of a line.

    Args:
        record_id: Integer id of the query, in pools of the candidate; -1 when it is not known.
        task_id: Task, -1 for none.
        modality: Place of a candidate's modality in `CANDIDATE_MODALITIES`, -1 for none.
        checksum: Checksum of a candidate's content, 0 for none.
        picture: Hash of the picture's path, 0 for none.
        positives: Integer ids.
        negatives: Integer ids, none of them a positive.
        remarks: What is odd and tolerated.
        is_broken: Whether the line breaks the format; the id is then the only thing known.
    """

    record_id: int
    task_id: int = -1
    modality: int = -1
    checksum: int = 0
    picture: int = 0
    positives: Sequence[int] = ()
    negatives: Sequence[int] = ()
    remarks: Sequence[str] = ()
    is_broken: bool = False


def parse_line(source: Source, text: bytes, path: Path, line: int) -> Entry:
    """Parse a line of a source.

    Args:
        source: The file.
        text: The line.
        path: Path of the file, for the error.
        line: Its number, for the error.

    Raises:
        ValueError: The line breaks the format.
    """
    return _PARSERS[source.kind](source, text, path, line)


def salvage_id(source: Source, text: bytes) -> int:
    """Return the id that a broken line shows, -1 for none.

    So one broken line is one fault: those that refer to it are not faults too.

    >>> source = Source("query", "mbeir_oven_train.jsonl", "oven", "train")
    >>> salvage_id(source, b'{"qid": "5:3", "query_txt": ')
    2500003
    """
    pattern, limit = _SALVAGE[source.kind]
    match = re.search(pattern, text)
    if match is None or not 0 < int(match[2]) < limit:
        return -1
    return int(match[1]) * limit + int(match[2])


def find_picture(source: Source, text: bytes, path: Path, line: int) -> str:
    """Return the picture's path in a line that was parsed before.

    Raises:
        ValueError: The line has changed since.
    """
    row = parse_row(text, path, line)
    return row.get_text("query_img_path" if source.kind == "query" else "img_path")


def _parse_query(source: Source, text: bytes, path: Path, line: int) -> Entry:
    row = parse_row(text, path, line)
    has_task = row.fields.get("task_id") is not None
    query = parse_query(row, source.dataset, source.task_id)
    positives = row.fields["pos_cand_list"]
    negatives = row.fields.get("neg_cand_list") or []
    negative_dids = {v["did"] if isinstance(v, dict) else v for v in negatives}
    odd = {
        NO_TASK: not has_task,
        OBJECT_IDS: any(isinstance(v, dict) for v in (*positives, *negatives)),
        NULL_TEXT: _has_null_text(row, "query_txt", "query_img_path"),
        BOTH_ROLES: len(negative_dids) > len(query.negative_ids),
        LONG: len(query.text) > LONG_TEXT,
    }
    return Entry(
        record_id=encode_id(query.query_id, MAX_QUERY_NUMBER),
        task_id=query.task_id,
        picture=_hash_path(query.image_path),
        positives=[encode_id(key, MAX_CANDIDATE_NUMBER) for key in query.positive_ids],
        negatives=[encode_id(key, MAX_CANDIDATE_NUMBER) for key in query.negative_ids],
        remarks=[remark for remark, is_so in odd.items() if is_so],
    )


def _parse_candidate(source: Source, text: bytes, path: Path, line: int) -> Entry:
    row = parse_row(text, path, line)
    candidate = parse_candidate(row)
    if source.task_id is not None:
        expected = TASK_MODALITIES[source.task_id][1]
        if candidate.modality != expected:
            raise row.error(
                f"modality {candidate.modality!r} in a pool of task {source.task_id}, "
                f"whose candidates are {expected!r}"
            )
    odd = {
        NULL_TEXT: _has_null_text(row, "txt", "img_path"),
        LONG: len(candidate.text) > LONG_TEXT,
    }
    content = f"{candidate.modality}\0{candidate.image_path}\0{candidate.text}"
    return Entry(
        record_id=encode_id(candidate.candidate_id, MAX_CANDIDATE_NUMBER),
        modality=CANDIDATE_MODALITIES.index(candidate.modality),
        checksum=zlib.crc32(content.encode()) or 1,
        picture=_hash_path(candidate.image_path),
        remarks=[remark for remark, is_so in odd.items() if is_so],
    )


def _parse_qrels_line(source: Source, text: bytes, path: Path, line: int) -> Entry:
    row = Row({}, path, line)
    words = text.decode().rstrip("\r\n")
    query_id, candidate_id, is_relevant = parse_qrels_line(row, words)
    task = words.split()[4]
    tasks = list(TASK_MODALITIES) if source.task_id is None else [source.task_id]
    if task not in map(str, tasks):
        raise row.error(f"{words!r} is of task {task!r}, none of {tasks}")
    candidate = encode_id(candidate_id, MAX_CANDIDATE_NUMBER)
    return Entry(
        record_id=encode_id(query_id, MAX_QUERY_NUMBER),
        task_id=int(task),
        positives=[candidate] if is_relevant else [],
    )


def _parse_rationale(source: Source, text: bytes, path: Path, line: int) -> Entry:
    rationale = parse_rationale(parse_row(text, path, line))
    return Entry(encode_id(rationale.query_id, MAX_QUERY_NUMBER), rationale.task_id)


_PARSERS: dict[SourceKind, Callable[[Source, bytes, Path, int], Entry]] = {
    "query": _parse_query,
    "pool": _parse_candidate,
    "union_pool": _parse_candidate,
    "qrels": _parse_qrels_line,
    "rationales": _parse_rationale,
}


def _hash_path(path: str | None) -> int:
    if path is None:
        return 0
    digest = blake2b(path.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _has_null_text(row: Row, *names: str) -> bool:
    return any(row.fields.get(name) == "null" for name in names)
