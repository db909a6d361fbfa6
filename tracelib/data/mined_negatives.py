"""Hard negatives that `mine` wrote: M-BEIR's rows of training queries with other negatives.

The folder has `query/train/mbeir_<dataset>_train.jsonl`, or the file of all data sets in
`query/union_train`, and `report.json`, which is written last. Of a row, `qid` and `neg_cand_list`
are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, List, Value

from tracelib.data.conversion import TableFormat
from tracelib.data.jsonl import DataError, parse_row
from tracelib.data.layout import name_root
from tracelib.data.mbeir import CACHE_FOLDER
from tracelib.data.query_table import QueryTable
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    decode_id,
    encode_id,
    parse_candidate_ids,
    parse_id,
)
from tracelib.data.table_cache import open_table
from tracelib.data.tables import CandidateTable, NegativeTable

REPORT_FILE = "report.json"
_OPTION = "(data.mined_negatives)"


def read_mined_negatives(
    folder: Path, queries: QueryTable, pool: CandidateTable, cache_dir: Path | None = None
) -> QueryTable:
    """Return the training queries with the hard negatives that were mined in place of their own.

    Args:
        folder: What `mine` wrote.
        queries: All training queries, those that are held out included.
        pool: Train pool.
        cache_dir: Folder to keep the tables of the files in; None keeps them in `folder`.

    Raises:
        DataError: The folder is not finished, a row breaks the format or is of no training query,
            a query has no row, or a negative is not in the pool or is a positive of its query.
    """
    if not (folder / REPORT_FILE).is_file():
        raise DataError(
            f"{folder / REPORT_FILE} is missing: nothing was mined here, or not to the end; run "
            f"python -m tracelib mine {_OPTION}"
        )
    cache = folder / CACHE_FOLDER if cache_dir is None else Path(cache_dir) / name_root(folder)
    paths = sorted(folder.glob("query/*train/*.jsonl"))
    mined = NegativeTable(
        [open_table(path, cache / path.relative_to(folder), _build_format(path)) for path in paths]
    )
    _check_queries(folder, mined, queries)
    _check_negatives(mined, queries, pool)
    return queries.replace_negatives(mined)


def _build_format(path: Path) -> TableFormat:
    """Return the format of a file, in which queries come several times if it is up-sampled."""
    features = Features(id=Value("int64"), negative_ids=List(Value("int64")))
    unique_id = None if path.parent.name == "union_train" else "qid"
    return TableFormat("query", features, _parse_line, MAX_QUERY_NUMBER, unique_id)


def _parse_line(text: bytes, path: Path, line: int) -> tuple[Any, ...]:
    row = parse_row(text, path, line)
    query_id = parse_id(row, row.require("qid"), MAX_QUERY_NUMBER)
    row.require("neg_cand_list")
    negative_ids = parse_candidate_ids(row, "neg_cand_list")
    return (
        encode_id(query_id, MAX_QUERY_NUMBER),
        [encode_id(name, MAX_CANDIDATE_NUMBER) for name in negative_ids],
    )


def _check_queries(folder: Path, mined: NegativeTable, queries: QueryTable) -> None:
    """Check that the rows are of the training queries."""
    for place in np.flatnonzero(~np.isin(mined.ids, queries.ids))[:1].tolist():
        name = decode_id(int(mined.ids[place]), MAX_QUERY_NUMBER)
        raise DataError(
            f"{mined.describe_place(place)}: qid {name!r} is no query of the {queries.split} "
            f"split {_OPTION}"
        )
    for file in queries.files:
        for row in np.flatnonzero(mined.find(file.ids) < 0)[:1].tolist():
            raise DataError(
                f"{file.table.source}:{row + 1}: qid {file.name_query(row)!r} has no row in "
                f"{folder}: mine all training queries again {_OPTION}"
            )


def _check_negatives(mined: NegativeTable, queries: QueryTable, pool: CandidateTable) -> None:
    """Check that each negative is in the pool and is no positive of its query."""
    counts, ids = mined.read_lists(np.arange(len(mined)))
    rows, places = np.repeat(np.arange(len(mined)), counts), pool.find(ids)
    for spot in np.flatnonzero(places < 0)[:1].tolist():
        raise DataError(
            f"{_describe(mined, rows[spot], ids[spot])} is not in the train pool {_OPTION}"
        )
    offsets, positive_ids = queries.positives
    owners = np.repeat(mined.find(queries.ids), np.diff(offsets))
    first_rows = mined.find(mined.ids[rows])  # an up-sampled query is known by its first row
    # one number for each pair of a row and a candidate
    ours, theirs = first_rows * len(pool) + places, owners * len(pool) + pool.find(positive_ids)
    is_positive = np.isin(ours, theirs)
    for spot in np.flatnonzero(is_positive)[:1].tolist():
        raise DataError(
            f"{_describe(mined, rows[spot], ids[spot])} is a positive of the query {_OPTION}"
        )


def _describe(mined: NegativeTable, row: int, negative_id: int) -> str:
    """Return the beginning of an error: file, line, query, negative."""
    query_id = decode_id(int(mined.ids[row]), MAX_QUERY_NUMBER)
    name = decode_id(int(negative_id), MAX_CANDIDATE_NUMBER)
    return f"{mined.describe_place(int(row))}: {name!r}, a hard negative of query {query_id!r},"
