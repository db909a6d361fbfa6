import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tracelib.data.jsonl import DataError
from tracelib.data.mbeir import CACHE_FOLDER, MBEIRReader
from tracelib.data.parquet import read_parquet_lines
from tracelib.data.rationales import RationaleRow, write_rationales
from tracelib.data.table_cache import hash_source

ROWS = [
    RationaleRow("11:1", 0, 1, "0 red star.", "1 blue star.", 0.9, "teacher", "someone"),
    RationaleRow("11:2", 1, 0, None, None, None, "teacher", "rule"),
    RationaleRow("11:3", 2, 1, "Ä — 星", "<|im_end|> b", 1, "oracle", "someone"),
]
LINES = "mbeir_scenes_train_rationales.jsonl"
TABLE = "mbeir_scenes_train_rationales.parquet"


def write_table(folder, rows, name=TABLE, **columns):
    folder.mkdir(exist_ok=True)
    fields = [{**row.format_fields(), "template": "all"} for row in rows]
    table = pa.Table.from_pylist(fields)
    for column, values in columns.items():
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array(values))
    pq.write_table(table, folder / name, row_group_size=2)
    return folder / name


@pytest.fixture
def reader(tmp_path):
    return MBEIRReader(tmp_path)


def test_a_row_is_the_same_in_both_forms(reader, tmp_path):
    path = write_table(tmp_path / "rationales", ROWS)
    found = list(reader.read_rationales("train"))
    path.unlink()
    write_rationales(tmp_path / "rationales" / LINES, ROWS)
    assert found == list(reader.read_rationales("train"))
    assert found[:2] == ROWS[:2]
    assert found[2].answer == "b"  # no row may inject a control token


def test_a_changed_file_is_read_anew(reader, tmp_path):
    path = write_table(tmp_path / "rationales", ROWS)
    os.utime(path, (1e9, 1e9))  # long ago: the digest of the conversion is kept
    assert len(reader.read_rationales("train")) == 3
    cache = tmp_path / CACHE_FOLDER / "rationales" / TABLE
    assert hash_source(path, cache) == hashlib.sha256(path.read_bytes()).hexdigest()
    write_table(tmp_path / "rationales", ROWS[:1])
    assert list(reader.read_rationales("train")) == ROWS[:1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"difficulty": [1, 0, 2]}, r"parquet:3: difficulty 2 is none of"),
        ({"difficulty": [1, 1, 1]}, r"parquet:2: difficulty 1, reasoning '', .* needs both texts"),
        ({"source": ["teacher", "self", "someone"]}, r"parquet:3: source 'someone' is none of"),
        ({"cot_conf": [0.9, float("nan"), 1]}, r"parquet:2: cot_conf nan is neither null nor"),
        ({"cot_conf": [0.9, 1.5, 1]}, r"parquet:2: cot_conf 1.5 is neither null nor"),
        ({"qid": ["11:1", "11:2", "11:1"]}, r"parquet:3: qid '11:1' occurs twice"),
        ({"qid": ["11:1", "eleven", "11:3"]}, r"parquet:2: id 'eleven' is not 'D:N'"),
        ({"task_id": ["0", "1", "2"]}, r"parquet:1: task_id '0' is none of"),
        ({"teacher": ["a", None, "b"]}, r"parquet:2: field 'teacher' is missing or null"),
        ({"answer": [b"\xff", b"", b""]}, r"parquet:1: the row .* is no JSON"),
    ],
)
def test_rows_are_checked_as_strictly_as_lines(reader, tmp_path, columns, message):
    write_table(tmp_path / "rationales", ROWS, **columns)
    with pytest.raises(DataError, match=message):
        reader.read_rationales("train")


def test_a_damaged_file_says_so(reader, tmp_path):
    path = write_table(tmp_path / "rationales", ROWS)
    whole = path.read_bytes()
    for broken in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 200):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"parquet: no whole Parquet file, read up to row 0"):
            reader.read_rationales("train")
    pq.write_table(pa.table({"qid": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="holds no rationale; at least one"):
        reader.read_rationales("train")


def test_both_forms_of_a_data_set_are_too_many(reader, tmp_path):
    write_table(tmp_path / "rationales", ROWS)
    write_table(tmp_path / "rationales", ROWS, name=TABLE.replace("train", "val"))
    write_rationales(tmp_path / "rationales" / LINES, ROWS)
    with pytest.raises(DataError, match=rf"{LINES} and {TABLE} are both there; remove one"):
        reader.read_rationales("train")
    assert len(reader.read_rationales("val")) == 3


def test_lines_are_the_rows_in_order(tmp_path):
    path = tmp_path / "many.parquet"
    pq.write_table(pa.table({"number": list(range(9000))}), path, row_group_size=1000)
    numbers = [json.loads(line)["number"] for line in read_parquet_lines(path)]
    assert numbers == list(range(9000))
