"""How each kind of M-BEIR file becomes a table: its columns, and a row from a line."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from tracelib.data.conversion import TableFormat
from tracelib.data.jsonl import Row, parse_row
from tracelib.data.rationales import SOURCES, parse_rationale
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    encode_id,
    parse_candidate,
    parse_qrels_line,
    parse_query,
)

MODALITIES = ("text", "image", "image,text")
"""The column `modality` holds a place in this."""


def build_query_format(file_task: int | None, repeats_ids: bool = False) -> TableFormat:
    """Return the format of a query file.

    Args:
        file_task: Task that the file's name gives, or None.
        repeats_ids: Whether queries may come several times, as in an up-sampled file.
    """
    return TableFormat(
        "query",
        Features(
            id=Value("int64"),
            text=Value("string"),
            image_path=Value("string"),
            task_id=Value("int8"),
            length=Value("int32"),
            positive_ids=List(Value("int64")),
            negative_ids=List(Value("int64")),
        ),
        partial(_parse_query_line, file_task=file_task),
        MAX_QUERY_NUMBER,
        None if repeats_ids else "qid",
    )


def _parse_query_line(
    text: bytes, path: Path, line: int, file_task: int | None
) -> tuple[Any, ...] | None:
    query = parse_query(parse_row(text, path, line), "", file_task)
    return (
        encode_id(query.query_id, MAX_QUERY_NUMBER),
        query.text,
        query.image_path,
        query.task_id,
        len(query.text),
        [encode_id(name, MAX_CANDIDATE_NUMBER) for name in query.positive_ids],
        [encode_id(name, MAX_CANDIDATE_NUMBER) for name in query.negative_ids],
    )


def _parse_candidate_line(text: bytes, path: Path, line: int) -> tuple[Any, ...] | None:
    candidate = parse_candidate(parse_row(text, path, line))
    content = f"{candidate.text}\0{candidate.image_path}"
    checksum = hashlib.blake2b(content.encode(), digest_size=8)
    return (
        encode_id(candidate.candidate_id, MAX_CANDIDATE_NUMBER),
        candidate.text,
        candidate.image_path,
        MODALITIES.index(candidate.modality),
        len(candidate.text),
        int.from_bytes(checksum.digest(), "little", signed=True),
    )


def _parse_qrels_line(text: bytes, path: Path, line: int) -> tuple[Any, ...] | None:
    row = Row({}, path, line)
    try:
        query_id, candidate_id, relevant = parse_qrels_line(row, text.decode().strip())
    except UnicodeDecodeError as error:
        raise row.error(f"{text[:80]!r} is no UTF-8: {error}") from error
    if not relevant:
        return None
    return (
        encode_id(query_id, MAX_QUERY_NUMBER),
        encode_id(candidate_id, MAX_CANDIDATE_NUMBER),
        line,
    )


def _arrange_qrels(table: pa.Table) -> pa.Table:
    """Put the positives of a query in one run, each once, in the file's order."""
    ids, candidate_ids = (table.column(name).to_numpy() for name in ("id", "candidate_id"))
    order = np.lexsort(
        (candidate_ids, ids)
    )  # stable: the first line of a repeated pair comes first
    is_again = (np.diff(ids[order]) == 0) & (np.diff(candidate_ids[order]) == 0)
    kept = np.sort(order[np.concatenate([np.ones(min(1, len(ids)), bool), ~is_again])])
    return table.take(kept[np.argsort(ids[kept], kind="stable")])


def _parse_rationale_line(text: bytes, path: Path, line: int) -> tuple[Any, ...] | None:
    row = parse_rationale(parse_row(text, path, line))
    return (
        encode_id(row.query_id, MAX_QUERY_NUMBER),
        row.task_id,
        row.difficulty,
        row.reasoning,
        row.answer,
        row.confidence,
        SOURCES.index(row.source),
        row.teacher,
    )


CANDIDATES = TableFormat(
    "candidate",
    Features(
        id=Value("int64"),
        text=Value("string"),
        image_path=Value("string"),
        modality=Value("int8"),
        length=Value("int32"),
        content=Value("int64"),
    ),
    _parse_candidate_line,
    MAX_CANDIDATE_NUMBER,
    "did",
)
QRELS = TableFormat(
    "positive",
    Features(id=Value("int64"), candidate_id=Value("int64"), line=Value("int32")),
    _parse_qrels_line,
    MAX_QUERY_NUMBER,
    None,
    _arrange_qrels,
)
RATIONALES = TableFormat(
    "rationale",
    Features(
        id=Value("int64"),
        task_id=Value("int8"),
        difficulty=Value("int8"),
        reasoning=Value("string"),
        answer=Value("string"),
        confidence=Value("float64"),
        source=Value("int8"),
        teacher=Value("string"),
    ),
    _parse_rationale_line,
    MAX_QUERY_NUMBER,
    "qid",
)
