import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from tracelib.data.arrow import IdIndex, write_index
from tracelib.data.formats import CANDIDATES, QRELS
from tracelib.data.jsonl import DataError, write_rows
from tracelib.data.table_cache import open_table

RNG = random.Random(0)


def make_rows(number):
    return [
        {"did": f"{RNG.randrange(4)}:{n}", "txt": f"word {n} " * (n % 5 + 1), "modality": "text"}
        for n in RNG.sample(range(1, 10 * number), number)
    ]


@pytest.fixture(scope="module")
def rows():
    return make_rows(20_000)  # several record batches


@pytest.fixture(scope="module")
def table(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrow")
    write_rows(folder / "pool.jsonl", rows)
    return open_table(folder / "pool.jsonl", folder / "table", CANDIDATES)


def test_index_finds_what_a_dict_finds(tmp_path):
    ids = np.array(RNG.sample(range(10**12), 3000))
    write_index(tmp_path, ids)
    index = IdIndex(tmp_path)
    places = {number: place for place, number in enumerate(ids.tolist())}
    wanted = np.array([*RNG.choices(ids.tolist(), k=500), *range(50), 10**13, -1])
    assert index.find(wanted).tolist() == [places.get(number, -1) for number in wanted.tolist()]
    assert index.find(np.array([], np.int64)).tolist() == []


def test_index_spans_are_the_runs_of_an_id(tmp_path):
    ids = np.array([3, 3, 3, 7, 9, 9])
    write_index(tmp_path, ids)
    starts, stops = IdIndex(tmp_path).find_spans(np.array([9, 3, 4, 7, 100]))
    assert [ids[a:b].tolist() for a, b in zip(starts, stops, strict=True)] == [
        [9, 9],
        [3, 3, 3],
        [],
        [7],
        [],
    ]
    assert IdIndex(tmp_path).find(np.array([9, 3])).tolist() == [4, 0]


def test_index_takes_at_most_16_bytes_a_row_and_is_mapped(table, rows):
    assert table.index.num_bytes <= 16 * len(rows)
    files = sum(path.stat().st_size for path in table.folder.glob("*.npy"))
    assert files <= table.index.num_bytes + 1000
    maps = Path("/proc/self/maps").read_text()
    for name in ("ids.npy", "rows.npy", "table.arrow"):
        assert f"{table.folder}/{name}" in maps


@pytest.mark.parametrize(
    "places",
    [
        range(20_000),
        range(8190, 8195),
        [8191, 8192],
        [0],
        [19_999],
        [5, 5, 5],
        [5, 4, 3],
        [7, 9, 8, 10],
        RNG.choices(range(20_000), k=200),
        [],
    ],
)
def test_rows_are_those_of_the_file(table, rows, places):
    ids, texts = table.read_rows(np.array(places, np.int64), ("id", "text"))
    expected = [rows[i] for i in places]
    assert texts == [row["txt"] for row in expected]
    pairs = [row["did"].split(":") for row in expected]
    assert ids == [int(d) * 10_000_000 + int(n) for d, n in pairs]


def test_pickled_it_is_its_path(table):
    content = pickle.dumps(table)
    assert len(content) < 1000
    copy = pickle.loads(content)
    assert copy.read_column("text").equals(table.read_column("text"))
    assert (copy.source, copy.folder, len(copy)) == (table.source, table.folder, len(table))


def test_a_table_cut_short_is_not_read_silently(tmp_path):
    write_rows(tmp_path / "pool.jsonl", make_rows(9000))
    table = open_table(tmp_path / "pool.jsonl", tmp_path / "table", CANDIDATES)
    path, content = table.folder / "table.arrow", pickle.dumps(table)
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - 8, 5000), len(whole) - 9]:
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=f"remove {table.folder.parent}$"):
            pickle.loads(content)
    path.write_bytes(whole)
    assert len(pickle.loads(content)) == 9000


def test_qrels_are_sorted_by_query_without_repeats(tmp_path):
    lines = ["5:2 0 1:9 1 6", "5:1 0 1:7 1 6", "5:2 0 1:3 1 6", "5:2 0 1:9 1 6", "5:1 0 1:8 0 6"]
    (tmp_path / "qrels.txt").write_text("\n".join([*lines, "5:1 0 1:2 1 6"]))
    table = open_table(tmp_path / "qrels.txt", tmp_path / "table", QRELS)
    assert table.read_numbers("id").tolist() == [2500001, 2500001, 2500002, 2500002]
    numbers = table.read_numbers("candidate_id") - 10_000_000
    assert numbers.tolist() == [7, 2, 9, 3]
    assert table.read_numbers("line").tolist() == [2, 6, 1, 3]
