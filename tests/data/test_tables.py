import dataclasses
import json
import multiprocessing
import pickle
import random
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from tests.reference.mbeir import read_pool, read_queries
from tests.tiny import cut_scenes
from tracelib.data.jsonl import DataError, read_rows, write_rows
from tracelib.data.layout import Layout
from tracelib.data.mbeir import MBEIRReader, check_positives
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    TASK_MODALITIES,
    encode_id,
)
from tracelib.data.tables import CandidateTable

COLUMNS = [f"scenes_task{task}" for task in TASK_MODALITIES]
POLICIES = ["fixed", "per_query_hash", "random", "all"]


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("tables") / "scenes", 5, 9)


@pytest.fixture(scope="module")
def found(root):
    return MBEIRReader(root).read_evaluation_set("test", "all")


def to_tuple(query):
    """Return a query's fields as the slow reading gives them."""
    fields = [getattr(query, field.name) for field in dataclasses.fields(query)]
    thought = query.rationale
    fields[7] = thought and (thought.reasoning, thought.answer, thought.source)
    return tuple(fields)


def encode(names, limit):
    return np.array([encode_id(name, limit) for name in names])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_queries_are_those_of_the_slow_reading(root, split, policy):
    reader = MBEIRReader(root)
    table = reader.read_queries(split, None, policy, 3)
    stems = ["scenes"] if split == "train" else COLUMNS
    slow = [q for stem in stems for q in read_queries(root, split, stem, policy, 3)]
    assert [to_tuple(query) for query in table] == slow
    assert len(table) == len(slow)
    assert table.query_ids == [q[0] for q in slow]
    assert table.ids.tolist() == encode(table.query_ids, MAX_QUERY_NUMBER).tolist()
    assert table.columns == [q[1] for q in slow]
    assert table.task_ids.tolist() == [q[2] for q in slow]
    assert table.has_image.tolist() == [q[4] is not None for q in slow]
    assert table.difficulty.tolist() == [-1 if q[8] is None else q[8] for q in slow]
    assert table.prompt_numbers.tolist() == [q[10] for q in slow]
    assert table.rationale_sources.tolist() == [-1 if q[7] is None else 0 for q in slow]
    offsets, ids = table.positives
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == [
        encode(q[6], MAX_CANDIDATE_NUMBER).tolist() for q in slow
    ]
    assert {table.ids.dtype, table.task_ids.dtype, table.difficulty.dtype, table.lengths.dtype} == {
        np.dtype(name) for name in ("int64", "int8", "int32")
    }


def test_lengths_are_those_of_the_texts_in_the_files(root, found):
    rows = [
        row.fields for column in COLUMNS for row in read_rows(Layout(root).pool(column, "test"))
    ]
    assert found.candidates.lengths.tolist() == [len(row["txt"] or "") for row in rows]
    queries = [
        row.fields for column in COLUMNS for row in read_rows(Layout(root).query(column, "test"))
    ]
    fixed = MBEIRReader(root).read_queries("test")
    assert fixed.lengths.tolist() == [len(row["query_txt"] or "") for row in queries]


def test_every_prompt_comes_once_per_query_under_the_policy_all(root, found):
    single = MBEIRReader(root).read_evaluation_set("test")
    assert (single.queries.prompt_numbers == 0).all()
    assert len(found.queries) == 4 * len(single.queries)
    assert found.queries.prompt_numbers.tolist() == [1, 2, 3, 4] * len(single.queries)
    for column, span in found.query_spans.items():
        assert {found.queries.columns[i] for i in span} == {column}
        assert len(span) == 4 * len(single.query_spans[column])
    first = found.queries.take(range(4))
    assert len({query.instruction for query in first}) == 4
    assert first[0] == dataclasses.replace(single.queries[0], prompt_number=1)


def test_candidates_are_those_of_the_slow_reading(root, found):
    slow = [c for column in COLUMNS for c in read_pool(Layout(root).pool(column, "test"))]
    assert [dataclasses.astuple(candidate) for candidate in found.candidates] == slow
    assert [found.pools[c] for c in COLUMNS] == [range(9 * i, 9 * i + 9) for i in range(8)]
    names = [c[0] for c in slow]
    ids = encode(names, MAX_CANDIDATE_NUMBER)
    assert found.candidates.ids.tolist() == ids.tolist()
    assert found.candidates.has_image.tolist() == [c[2] is not None for c in slow]
    assert found.candidates.format_ids(np.array([[0, 3], [71, 40]])) == [
        [names[0], names[3]],
        [names[71], names[40]],
    ]
    wanted = np.array([ids[70], 7, ids[0], ids[0], -1, 10**17])
    assert found.candidates.find(wanted).tolist() == [70, -1, 0, 0, -1, -1]
    assert found.candidates.find(wanted[:0]).tolist() == []


@pytest.mark.parametrize("side", ["queries", "candidates"])
def test_records_are_taken_in_any_order(found, side):
    table = getattr(found, side)
    records = list(table)
    places = random.Random(0).choices(range(len(table)), k=300)
    assert table.take(places) == [records[i] for i in places]
    assert table.take(np.array(places)) == table.take(places)
    assert table.take([]) == []
    assert table[-1] == records[-1]
    assert table[3:40:7] == records[3:40:7]
    assert table[::-1] == records[::-1]
    for place in (len(table), -len(table) - 1):
        with pytest.raises(IndexError):
            table[place]
    for places in ([-1], [len(table)]):
        with pytest.raises(IndexError, match=rf"of {len(table)} records"):
            table.take(places)


def test_a_pickled_table_is_small_and_gives_equal_records(found, tmp_path):
    found.queries.positives, found.queries.columns, found.candidates.ids  # noqa: B018
    content = pickle.dumps(found)
    assert len(content) < 20_000
    copy = pickle.loads(content)
    assert list(copy.queries) == list(found.queries)
    assert list(copy.candidates) == list(found.candidates)
    (tmp_path / "found.pkl").write_bytes(content)
    code = (
        "import pickle, sys; found = pickle.load(open(sys.argv[1], 'rb'));"
        "print([repr(found.queries[33]), repr(found.candidates[-2])])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "found.pkl"], capture_output=True, text=True
    )
    assert done.stdout.strip() == str([repr(found.queries[33]), repr(found.candidates[-2])])


def test_a_forked_worker_reads_the_same(found):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    places = [3, 70, 20]

    def work():
        sender.send((found.queries.take(places), found.candidates.take(places)))

    worker = context.Process(target=work)
    worker.start()
    queries, candidates = receiver.recv()
    worker.join()
    assert queries == found.queries.take(places)
    assert candidates == found.candidates.take(places)


def test_first_places_are_those_of_equal_content_in_the_same_pool(tmp_path):
    contents = [("a", None), ("", "a.png"), ("a", None), ("a", "a.png"), ("", "a.png"), ("b", None)]
    rows = [
        {
            "did": f"1:{number}",
            "txt": text,
            "img_path": image,
            "modality": ",".join(["image"] * bool(image) + ["text"] * bool(text)),
        }
        for number, (text, image) in enumerate(contents * 2, 1)
    ]
    for task, part in enumerate((rows[:6], rows[6:])):
        write_rows(Layout(tmp_path).pool(f"x_task{task}"), part)
    reader = MBEIRReader(tmp_path)
    tables = [reader.read_pool("test", f"x_task{task}").tables[0] for task in (0, 1)]
    both = CandidateTable(tables)
    pools = {"x_task0": range(6), "x_task1": range(6, 12)}
    assert both.find_first_places(pools).tolist() == [0, 1, 0, 3, 1, 5, 6, 7, 6, 9, 7, 11]
    assert both.find_first_places({"all": range(12)}).tolist() == [0, 1, 0, 3, 1, 5] * 2


def test_a_candidate_in_two_pools_is_named(tiny_scenes, tmp_path):
    root = cut_scenes(tiny_scenes, tmp_path / "scenes")
    layout = Layout(root)
    first, second = (layout.pool(column, "val") for column in COLUMNS[2:4])
    rows = [[row.fields for row in read_rows(path)] for path in (first, second)]
    write_rows(second, [*rows[1], rows[0][5]])
    reader = MBEIRReader(root)
    message = f"{second}:9: did {rows[0][5]['did']!r} is also in {first}:6"
    with pytest.raises(DataError, match=re.escape(message)):
        reader.read_evaluation_set("val")
    assert len(reader.read_pool("val", COLUMNS[3])) == 9


@pytest.mark.parametrize("num_hard_negatives", [0, 1, 3])
def test_check_positives_finds_what_a_loop_finds(tiny_scenes, tmp_path, num_hard_negatives):
    root = cut_scenes(tiny_scenes, tmp_path / "scenes")
    layout, rng = Layout(root), random.Random(1)
    rows = [row.fields for row in read_rows(layout.union_pool("train"))]
    queries = MBEIRReader(root).read_queries("train")
    outcomes = set()
    for number in range(30):
        gone = {row["did"] for row in rng.sample(rows, number % 3)}
        write_rows(layout.union_pool("train"), [row for row in rows if row["did"] not in gone])
        pool = MBEIRReader(root).read_union_pool("train")
        lacking = {
            (query.query_id, name)
            for query in queries
            for name in (*query.positive_ids, *query.negative_ids[:num_hard_negatives])
            if name in gone
        }
        outcomes.add(bool(lacking))
        if not lacking:
            check_positives(queries, pool, "pool", num_hard_negatives)
            continue
        with pytest.raises(DataError) as caught:
            check_positives(queries, pool, "pool", num_hard_negatives)
        candidate_id, query_id = re.findall(r"'([0-9:]+)'", str(caught.value))
        assert (query_id, candidate_id) in lacking
    assert outcomes == {True, False}


def test_read_sources_change_with_their_own_file_alone(tiny_scenes, tmp_path):
    root = cut_scenes(tiny_scenes, tmp_path / "scenes")
    before = MBEIRReader(root).read_sources("val")
    assert list(before) == COLUMNS
    path = Layout(root).pool(COLUMNS[1], "val")
    write_rows(path, [row.fields for row in read_rows(path)][1:])
    after = MBEIRReader(root).read_sources("val")
    assert [c for c in COLUMNS if before[c] != after[c]] == [COLUMNS[1]]
    assert before[COLUMNS[1]][:2] == after[COLUMNS[1]][:2]
    with Layout(root).instructions.open("a") as file:
        file.write("\t".join(("text", "text", "More", "77", "find it")) + "\n")
    assert all(MBEIRReader(root).read_sources("val")[c][1] != after[c][1] for c in COLUMNS)


def test_rows_of_other_files_that_name_no_query_are_named(tiny_scenes, tmp_path):
    root = cut_scenes(tiny_scenes, tmp_path / "scenes")
    layout, reader = Layout(root), MBEIRReader(root)
    qrels = layout.qrels(COLUMNS[0], "val")
    lines = qrels.read_text().splitlines(keepends=True)
    qrels.write_text("".join([lines[0], lines[0].replace("10:1 ", "10:77 ", 1), *lines[1:]]))
    query_file = layout.query(COLUMNS[0], "val")
    message = f"{qrels}:2: qid '10:77' is no query of {query_file}"
    with pytest.raises(DataError, match=re.escape(message)):
        reader.read_queries("val")
    qrels.write_text("".join(lines))
    rationales = layout.rationales("scenes", "val")
    rows = [row.fields for row in read_rows(rationales)]
    for task in (0, 5):  # of a column, and of a task without any
        write_rows(rationales, [*rows, {**rows[0], "qid": "10:78", "task_id": task}])
        message = f"{rationales}:{len(rows) + 1}: qid '10:78' is no query of {query_file}"
        with pytest.raises(DataError, match=re.escape(message)):
            reader.read_queries("val")


def test_files_in_another_encoding_are_named(tiny_scenes, tmp_path):
    root = cut_scenes(tiny_scenes, tmp_path / "scenes")
    layout, reader = Layout(root), MBEIRReader(root)
    for path in (layout.qrels(COLUMNS[0], "val"), layout.instructions):
        content = path.read_bytes()
        lines = content.splitlines(keepends=True)
        path.unlink()  # it may be a link
        path.write_bytes(b"".join([*lines[:2], b"caf\xe9\n", *lines[2:]]))
        with pytest.raises(DataError, match=re.escape(f"{path}:3: ") + ".*no UTF-8"):
            reader.read_queries("val")
        path.write_bytes(content)
    reader.read_queries("val")


def test_half_a_character_is_named(tmp_path):
    path = Layout(tmp_path).pool("x_task0")
    row = {"did": "1:1", "txt": "smile \U0001f600", "modality": "text"}
    write_rows(path, [row])
    path.write_text(json.dumps(row) + "\n")  # two escapes that are one character
    assert MBEIRReader(tmp_path).read_pool("test", "x_task0")[0].text == "Smile \U0001f600."
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "txt": "smile \ud83d"}) + "\n")
    with pytest.raises(DataError, match=re.escape(f"{path}:2: ")):
        MBEIRReader(tmp_path).read_pool("test", "x_task0")
