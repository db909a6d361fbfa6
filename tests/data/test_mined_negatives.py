import dataclasses
import json
import pickle

import numpy as np
import pytest

from tests.tiny import cut_scenes
from tracelib.data.jsonl import DataError, read_rows
from tracelib.data.layout import Layout
from tracelib.data.mbeir import MBEIRReader
from tracelib.data.mined_negatives import REPORT_FILE, read_mined_negatives

NAME = "mbeir_scenes_train.jsonl"


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("mined") / "scenes")


@pytest.fixture(scope="module")
def records(root):
    """All training queries and their pool."""
    reader = MBEIRReader(root)
    return reader.read_queries("train"), reader.read_union_pool("train")


@pytest.fixture
def rows(root, records):
    """Rows whose negatives are two candidates that follow the positive in the pool, or none."""
    names = records[1].format_ids(np.arange(len(records[1]))[None])[0]
    rows = [row.fields for row in read_rows(Layout(root).query("scenes", "train"))]
    for number, row in enumerate(rows):
        place = names.index(row["pos_cand_list"][0])
        row["neg_cand_list"] = [names[(place + step) % len(names)] for step in (2, 1)[: number % 3]]
    return rows


def write(folder, rows, name=f"train/{NAME}"):
    path = folder / "query" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / REPORT_FILE).write_text("{}")
    return folder


def test_negatives_are_replaced_by_query_id_and_nothing_else(records, rows, tmp_path):
    queries, pool = records
    mined = read_mined_negatives(write(tmp_path, rows[::-1]), queries, pool)
    expected = {row["qid"]: tuple(row["neg_cand_list"]) for row in rows}
    assert len(mined) == len(queries)
    for old, new in zip(queries, mined, strict=True):
        assert new.negative_ids == expected[new.query_id]
        assert dataclasses.replace(old, negative_ids=new.negative_ids) == new
    assert list(pickle.loads(pickle.dumps(mined))) == list(mined)  # as a worker gets it
    half = np.arange(len(queries)) % 2 == 0
    assert list(mined.select(half)) == list(mined)[::2]
    offsets, ids = mined.listed_negatives
    for i, query in enumerate(mined):
        names = [f"{n // 10_000_000}:{n % 10_000_000}" for n in ids[offsets[i] : offsets[i + 1]]]
        assert tuple(names) == query.negative_ids
    assert {len(query.negative_ids) for query in mined} == {0, 1, 2}


def test_tables_are_kept_in_the_folder_or_where_asked(records, rows, tmp_path):
    read_mined_negatives(write(tmp_path / "mined", rows), *records, tmp_path / "cache")
    assert list(tmp_path.glob("cache/mined-*/query/train/*/manifest.json"))
    assert not (tmp_path / "mined" / ".tracelib").exists()
    read_mined_negatives(tmp_path / "mined", *records)
    assert (tmp_path / "mined" / ".tracelib").exists()


def test_rows_may_be_up_sampled_in_one_file(records, rows, tmp_path):
    name = "union_train/mbeir_union_up_train.jsonl"
    mined = read_mined_negatives(write(tmp_path, [*rows, *rows[:9]], name), *records)
    assert [list(query.negative_ids) for query in mined] == [row["neg_cand_list"] for row in rows]
    extra = {**rows[4], "neg_cand_list": rows[4]["pos_cand_list"]}
    with pytest.raises(DataError, match=rf":{len(rows) + 1}: .* is a positive of the query"):
        read_mined_negatives(write(tmp_path, [*rows, extra], name), *records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": "99:5"}, r"qid '99:5' is no query of the train split \(data\.mined_negatives"),
        ({"qid": "FIRST"}, "qid 'FIRST' occurs twice in this file"),
        ({"neg_cand_list": ["FREE", "OWN"]}, "'OWN', a hard negative of query 'QID', is a pos"),
        ({"neg_cand_list": ["FREE", "99:1"]}, "'99:1', .* 'QID', is not in the train pool"),
        ({"neg_cand_list": None}, "field 'neg_cand_list' is missing or null"),
        ({"neg_cand_list": "10:1"}, "neg_cand_list '10:1' is no list"),
        ({"neg_cand_list": [7]}, "id 7 is not 'D:N'"),
        ({"qid": None}, "field 'qid' is missing or null"),
    ],
)
def test_a_bad_row_is_named(records, rows, tmp_path, change, message):
    row = rows[7]
    words = {"FIRST": rows[0]["qid"], "QID": row["qid"]}
    words |= {"OWN": row["pos_cand_list"][0], "FREE": row["neg_cand_list"][0]}
    change = json.dumps(change)
    for word, value in words.items():
        change, message = change.replace(word, value), message.replace(word, value)
    row |= json.loads(change)
    with pytest.raises(DataError, match=f"{NAME}:8: {message}"):
        read_mined_negatives(write(tmp_path, rows), *records)


def test_a_query_without_a_row_is_named(records, rows, tmp_path, root):
    missing = rows.pop(20)
    with pytest.raises(DataError, match=rf"{NAME}:21: qid '{missing['qid']}' has no row in "):
        read_mined_negatives(write(tmp_path, rows), *records)
    (tmp_path / "query" / "train" / NAME).unlink()
    with pytest.raises(DataError, match=rf"{NAME}:1: qid .* mine all training queries again"):
        read_mined_negatives(tmp_path, *records)


def test_a_mining_that_did_not_end_is_refused(records, rows, tmp_path):
    (write(tmp_path, rows) / REPORT_FILE).unlink()
    with pytest.raises(DataError, match=r"report\.json is missing: .* run python -m tracelib mine"):
        read_mined_negatives(tmp_path, *records)
