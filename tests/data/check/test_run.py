import json
import os
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tracelib.cli import main
from tracelib.data.check import line_table, tree
from tracelib.data.check.expected import MBEIR_TEST_COUNTS
from tracelib.data.check.run import check
from tracelib.data.layout import CANONICAL_COLUMNS

HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2"


def run(root, status=1, **options):
    """Run a check, look at its exit status and return its report."""
    options = {"num_workers": 0, **options}
    if status:
        with pytest.raises(SystemExit) as stop:
            check(root, **options)
        assert stop.value.code == status
    else:
        check(root, **options)
    return json.loads((root / ".tracelib/check/report.json").read_text())


def places(findings):
    return sorted((found["file"], found["line"]) for found in findings)


def read_lines(root, name):
    return (root / name).read_bytes().splitlines(keepends=True)


def write_lines(root, name, lines):
    """Write a file that may be there already, as a link."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    rows = [line if isinstance(line, (str, bytes)) else json.dumps(line) + "\n" for line in lines]
    path.write_bytes(b"".join(row.encode() if isinstance(row, str) else row for row in rows))


@pytest.fixture
def root(tiny_scenes, tmp_path):
    """A copy of the benchmark, of links: write no file through."""
    return shutil.copytree(tiny_scenes, tmp_path / "scenes", copy_function=os.link)


def test_scenes_are_clean(root, capsys):
    report = run(root, status=0)
    assert report["faults"] == []
    assert report["num_pictures"] == len(list(root.glob("mbeir_images/**/*.png")))
    assert report["num_lines"] == sum(
        len(read_lines(root, path.relative_to(root)))
        for folder in ("query", "cand_pool", "qrels", "rationales")
        for path in root.glob(f"{folder}/**/*.*")
    )
    columns = {(row["split"], row["stem"]): row for row in report["columns"]}
    assert len(columns) == 17
    assert columns["test", "scenes_task0"]["num_queries"] == 8
    assert columns["test", "scenes_task0"]["positives_per_query"] == 1
    assert columns["train", "scenes"]["num_queries"] == 160
    assert columns["train", "scenes"]["num_cross_pool"] is None
    out = capsys.readouterr().out
    assert "no fault in" in out
    assert "scenes_task8" in out
    assert "(split, query id) names a query" in out


class Planter:
    """Changes a tree and remembers each fault: file, line and words of the message."""

    def __init__(self, root):
        self.root = root
        self.expected = {}

    def expect(self, name, line, words):
        assert (name, line) not in self.expected
        self.expected[name, line] = words

    def change(self, name, line, words, **fields):
        """Change fields of a row; `...` takes a field out."""
        lines = read_lines(self.root, name)
        row = {**json.loads(lines[line - 1]), **fields}
        lines[line - 1] = json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n"
        write_lines(self.root, name, lines)
        self.expect(name, line, words)

    def replace(self, name, line, words, change):
        """Change the bytes of a line."""
        lines = read_lines(self.root, name)
        lines[line - 1] = change(lines[line - 1])
        write_lines(self.root, name, lines)
        self.expect(name, line, words)

    def append(self, name, words, row):
        lines = [*read_lines(self.root, name), row]
        write_lines(self.root, name, lines)
        if words:
            self.expect(name, len(lines), words)

    def row(self, name, line):
        return json.loads(read_lines(self.root, name)[line - 1])

    def cells(self, name, line):
        return read_lines(self.root, name)[line - 1].decode().split()

    def expect_picture(self, path, words):
        """Expect a fault at the first line, file by file, that names a picture."""
        for folder in ("cand_pool/global", "cand_pool/local", "query"):
            for file in sorted((self.root / folder).rglob("*.jsonl")):
                name = file.relative_to(self.root).as_posix()
                for line, text in enumerate(read_lines(self.root, name), 1):
                    if f'"{path}"'.encode() in text:
                        self.expect(name, line, words)
                        return
        raise AssertionError(path)


def query(task, split="val"):
    return f"query/{split}/mbeir_scenes_task{task}_{split}.jsonl"


def pool(task, split="val"):
    return f"cand_pool/local/mbeir_scenes_task{task}_{split}_cand_pool.jsonl"


def qrels(task, split="val"):
    return f"qrels/{split}/mbeir_scenes_task{task}_{split}_qrels.txt"


TRAIN = "query/train/mbeir_scenes_train.jsonl"
TRAIN_QRELS = "qrels/train/mbeir_scenes_train_qrels.txt"
RATIONALES = "rationales/mbeir_scenes_val_rationales.jsonl"
UNION = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
INSTRUCTIONS = "instructions/query_instructions.tsv"


def plant_in_queries(plant):
    plant.replace(query(0), 2, "is no JSON", lambda text: text[:-20] + b"\n")
    plant.replace(query(1), 3, "is no JSON in UTF-8", lambda text: text.replace(b" a ", b" \xff "))
    plant.change(query(2), 1, "pos_cand_list is missing", pos_cand_list=...)
    plant.change(query(2), 4, "query_modality 'image' does not fit", query_modality="image")
    plant.change(query(3), 2, "task_id 5 is none of", task_id=5)
    plant.change(query(3), 5, "task_id 4 in a file of task 3", task_id=4)
    plant.change(query(3), 6, "task_id 9 is none of", task_id=9)
    plant.append(query(4), "'10:500000'", {**plant.row(query(4), 1), "qid": "10:500000"})
    plant.append(query(4), "'10-7'", {**plant.row(query(4), 1), "qid": "10-7"})
    plant.append(query(6), f"{query(6)}:1 already", plant.row(query(6), 1))
    plant.change(query(6), 3, "query_txt 7 is no string", query_txt=7)
    plant.append(query(7), "has no positive in", {**plant.row(query(7), 1), "qid": "10:4000"})
    plant.replace(query(8), 4, "is no JSON object", lambda text: b"[" + text.strip() + b"]\n")
    plant.replace(query(0), 7, "is no JSON", lambda text: text.strip() + b"}\n")
    plant.change(TRAIN, 5, "positive '10:9999999'", pos_cand_list=["10:9999999"])
    plant.change(TRAIN, 9, "negative '10:9999998'", neg_cand_list=["10:9999998"])


def plant_in_pools(plant):
    new = plant.row(pool(1), 1)
    plant.append(pool(1), "'10:10000000'", {**new, "did": "10:10000000"})
    plant.append(
        pool(1), "modality 'text,image'", {**new, "did": "10:70001", "modality": "text,image"}
    )
    plant.append(pool(2), f"{pool(2)}:1 already", plant.row(pool(2), 1))
    plant.append(pool(3), f"{pool(1)}:2 already", plant.row(pool(1), 2))
    plant.append(pool(4), "modality 'text' in a pool of task 4", {**new, "did": "10:70002"})
    plant.append(pool(6), "'did' is missing", {**new, "did": None})
    plant.append(pool(7), "is no JSON", "\n")
    plant.change(UNION, 3, "is another one at", txt="another text", img_path=None, modality="text")
    plant.append(UNION, "is in no local pool", {**new, "did": "10:70003"})
    lost = plant.row(UNION, 12)["did"]
    write_lines(
        plant.root, UNION, [t for i, t in enumerate(read_lines(plant.root, UNION)) if i != 11]
    )
    plant.expected[UNION, len(read_lines(plant.root, UNION))] = plant.expected.pop(
        (UNION, len(read_lines(plant.root, UNION)) + 1)
    )
    for task in range(9):
        if task != 5:
            dids = [json.loads(text)["did"] for text in read_lines(plant.root, pool(task, "test"))]
            if lost in dids:
                plant.expect(
                    pool(task, "test"), dids.index(lost) + 1, f"'{lost}' is not in {UNION}"
                )


def plant_in_qrels(plant):
    plant.replace(qrels(0), 3, "has 4 columns", lambda text: text[:-3] + b"\n")
    did = plant.cells(qrels(1), 1)[2]
    plant.append(qrels(1), "query '10:499999' is not in", f"10:499999 0 {did} 1 1\n")
    qid = plant.cells(qrels(2), 5)[0]
    plant.append(qrels(2), "is not in any pool of val", f"{qid} 0 10:9999999 1 2\n")
    plant.replace(qrels(6), 2, "is of task '7'", lambda text: text[:-2] + b"7\n")
    plant.replace(qrels(7), 2, "relevance 'yes'", lambda text: text.replace(b" 1 ", b" yes "))
    task = int(plant.cells(TRAIN_QRELS, 1)[4])
    other = (task + 1) % 3
    plant.replace(
        TRAIN_QRELS, 1, f"task {other}, but query", lambda text: text[:-2] + b"%d\n" % other
    )
    # A positive in another column's pool, no fault, and one in a pool of test, a fault.
    plant.append(
        qrels(8), "", f"{plant.cells(qrels(8), 1)[0]} 0 {plant.row(pool(7), 1)['did']} 1 8\n"
    )
    elsewhere = plant.row(pool(8, "test"), 1)["did"]
    row = f"{plant.cells(qrels(8), 1)[0]} 0 {elsewhere} 1 8\n"
    plant.append(qrels(8), "is not in any pool of val", row)
    (plant.root / qrels(3, "test")).unlink()
    plant.expect(qrels(3, "test"), None, "the file is missing")


def plant_in_the_rest(plant):
    lines = read_lines(plant.root, INSTRUCTIONS)
    gone = next(i for i, t in enumerate(lines) if t.startswith(b"image,text\timage,text\t"))
    del lines[gone]
    write_lines(plant.root, INSTRUCTIONS, lines)
    for name in (query(8), query(8, "test")):
        plant.expect(name, 1, "has no row for query")
    train = (json.loads(text)["task_id"] for text in read_lines(plant.root, TRAIN))
    plant.expect(TRAIN, next(i for i, task in enumerate(train, 1) if task == 8), "has no row")
    plant.append(INSTRUCTIONS, "has a row already, at line 2", lines[1])
    plant.append(INSTRUCTIONS, "no prompt from column 5 on", "text\ttext\tScenes\t10\t \n")
    plant.append(INSTRUCTIONS, "no task has", "text\tmusic\tScenes\t10\tfind it\n")

    row = plant.row(RATIONALES, 1)
    plant.append(
        RATIONALES,
        "difficulty 1 needs both texts",
        {**row, "qid": "10:4001", "difficulty": 1, "reasoning": None, "answer": None},
    )
    plant.append(RATIONALES, "is no query of 'scenes'", {**row, "qid": "10:4002"})
    plant.append(RATIONALES, f"{RATIONALES}:1 already", row)
    other = RATIONALES.replace("val", "test")
    plant.change(other, 3, "but query", task_id=(plant.row(other, 3)["task_id"] + 1) % 3)

    write_lines(plant.root, "query/val/mbeir_scenes_task5_val.jsonl", ["\n"])
    plant.expect("query/val/mbeir_scenes_task5_val.jsonl", None, "task 5 does not exist")
    write_lines(plant.root, "cand_pool/global/mbeir_union_val_cand_pool.jsonl", [])
    plant.expect("cand_pool/global/mbeir_union_val_cand_pool.jsonl", None, "the file is empty")


def plant_in_pictures(plant):
    def candidate(line):
        return plant.row(pool(7, "test"), line)["img_path"]

    def write(path, content):
        (plant.root / path).unlink()
        (plant.root / path).write_bytes(content)

    (plant.root / candidate(1)).unlink()
    plant.expect_picture(candidate(1), "the file is missing")
    write(candidate(2), (plant.root / candidate(2)).read_bytes()[:100])
    plant.expect_picture(candidate(2), "no whole picture")
    write(candidate(3), b"a note\n")
    plant.expect_picture(candidate(3), "no whole picture")
    write(candidate(4), make_png_header(20_000, 20_000))
    plant.expect_picture(candidate(4), "shrink the picture")
    write(candidate(5), make_png_header(2_010, 10))
    plant.expect_picture(candidate(5), "an aspect ratio beyond 200")
    line = next(
        i
        for i, text in enumerate(read_lines(plant.root, TRAIN), 1)
        if json.loads(text)["query_img_path"] and i > 20
    )
    plant.change(TRAIN, line, "outside the data root", query_img_path="../outside.png")
    Image.new("RGB", (4, 4)).save(plant.root.parent / "outside.png")


def make_png_header(width, height):
    """Return a PNG whose header claims a size, followed by almost no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.fixture
def plant(root):
    plant = Planter(root)
    plant_in_queries(plant)
    plant_in_pools(plant)
    plant_in_qrels(plant)
    plant_in_the_rest(plant)
    plant_in_pictures(plant)
    return plant


def test_every_planted_fault_is_named_and_nothing_else(plant, capsys):
    report = run(plant.root, num_shown=3)
    assert len(plant.expected) >= 50
    assert places(report["faults"]) == sorted(plant.expected)
    for fault in report["faults"]:
        assert plant.expected[fault["file"], fault["line"]] in fault["message"]
    columns = {(row["split"], row["stem"]): row for row in report["columns"]}
    assert columns["val", "scenes_task8"]["num_cross_pool"] == 1
    out = capsys.readouterr().out
    assert f"{len(plant.expected)} faults in" in out
    assert re.search(
        r"picture faults:\n(  cand_pool/global/\S+:\d+: picture '.*\n){3}  \.\.\. and", out
    )


def test_workers_find_the_same(plant):
    alone = run(plant.root, pictures="header")
    together = run(plant.root, pictures="header", num_workers=2, fresh=True)
    for report in (alone, together):
        report.pop("seconds")
        assert report.pop("num_remembered") == 0
    assert together == alone


def test_faults_are_found_in_parts_of_any_size(plant, monkeypatch):
    whole = run(plant.root, pictures="none")
    monkeypatch.setattr(tree, "_PART_BYTES", 501)
    in_parts = run(plant.root, pictures="none")
    for report in (whole, in_parts):
        report.pop("seconds")
    assert in_parts == whole


def test_what_is_tolerated_is_counted_and_no_fault(root):
    plant = Planter(root)
    row = plant.row(query(0), 1)
    positive = row["pos_cand_list"][0]
    other = plant.row(pool(0), 1)["did"]
    objects = {"pos_cand_list": [{"did": positive}], "neg_cand_list": [positive, other, other]}
    plant.change(query(0), 1, "", **objects)
    plant.change(query(0), 2, "", query_img_path="null", task_id=...)
    plant.change(query(1), 1, "", query_txt="word " * 500)
    plant.change(query(2), 3, "", pos_cand_list=[plant.row(pool(2), 9)["did"]])
    (root / "query/val/._mbeir_scenes_task0_val.jsonl").write_text("junk")
    up = "query/union_train/mbeir_union_up_train.jsonl"
    write_lines(root, up, [*read_lines(root, TRAIN), *read_lines(root, TRAIN)])
    report = run(root, status=0, pictures="none")
    notes = [(note["file"], note["line"], note["message"]) for note in report["notes"]]
    for name, line, words in [
        (query(0), 1, "with ids given as objects"),
        (query(0), 1, "with a candidate both positive and negative"),
        (query(0), 2, 'with the string "null"'),
        (query(0), 2, "without task_id"),
        (query(1), 1, "with a text of more than 2048 characters"),
        (query(2), 3, "pos_cand_list of 1 query differs from qrels/val/"),
        ("query/val/._mbeir_scenes_task0_val.jsonl", None, "not looked at"),
        ("query", None, "query ids in common to several splits"),
    ]:
        assert [n for n in notes if n[:2] == (name, line) and words in n[2]], words
    assert {row["stem"]: row["num_queries"] for row in report["columns"]}["union_up"] == 320


@pytest.fixture
def worked_example(tmp_path):
    """The example that the format's description works through, with pictures."""
    root = tmp_path / "example"
    pool_rows = [
        {
            "txt": "old stone bridge. A bridge over a river",
            "img_path": None,
            "modality": "text",
            "did": "5:1",
        },
        {"did": "5:2", "txt": '"red fox. a small canid"', "modality": "text"},
        {
            "did": "5:3",
            "txt": " tram. Rail vehicle that runs on streets!\r",
            "modality": "text",
            "img_path": None,
        },
        {"did": "5:4", "txt": "City park. Is it green?", "img_path": None, "modality": "text"},
    ]
    other = [
        {
            "did": "6:7",
            "img_path": None,
            "modality": "text",
            "txt": "Old stone bridge. Built in 1560",
        }
    ]
    texts = ("which bridge is this", "what species is shown?", "name the vehicle")
    queries = [
        {
            "qid": f"5:{number}",
            "query_txt": text,
            "query_img_path": f"mbeir_images/tiny/q{number}.jpg",
            "query_modality": "image,text",
            "pos_cand_list": [f"5:{number}"] + ["6:7"] * (number == 1),
            "neg_cand_list": ["5:4"] * (number == 2),
            "task_id": 6,
        }
        for number, text in enumerate(texts, 1)
    ]
    write_lines(root, "query/test/mbeir_oven_task6_test.jsonl", queries)
    write_lines(root, "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl", pool_rows)
    write_lines(root, "cand_pool/local/mbeir_infoseek_task6_cand_pool.jsonl", other)
    write_lines(root, "cand_pool/global/mbeir_union_test_cand_pool.jsonl", [*pool_rows, *other])
    judged = ("5:1 0 5:1", "5:1 0 6:7", "5:2 0 5:2", "5:3 0 5:3")
    write_lines(
        root, "qrels/test/mbeir_oven_task6_test_qrels.txt", [f"{words} 1 6\n" for words in judged]
    )
    prompts = "fetch the passage that settles this\tfind text that answers this"
    write_lines(root, INSTRUCTIONS, [HEADER + "\n", f"image,text\ttext\tOVEN\t5\t{prompts}\n"])
    (root / "mbeir_images/tiny").mkdir(parents=True)
    for number in (1, 2, 3):
        Image.new("RGB", (8, 8)).save(root / f"mbeir_images/tiny/q{number}.jpg")
    return root


def test_the_worked_example_is_clean_and_counted_beside_mbeir(worked_example, capsys):
    report = run(worked_example, status=0)
    (column,) = report["columns"]
    expected = column.pop("expected")
    assert column == {
        "split": "test",
        "stem": "oven_task6",
        "num_queries": 3,
        "num_candidates": 4,
        "num_qrels": 4,
        "positives_per_query": 4 / 3,
        "max_positives": 2,
        "num_cross_pool": 1,
    }
    assert expected == {
        "num_queries": 50_004,
        "num_candidates": 676_667,
        "num_qrels": 492_654,
        "num_cross_pool": 442_650,
    }
    small = [
        note["file"] for note in report["notes"] if "recall@50 takes the whole" in note["message"]
    ]
    assert small == [
        f"cand_pool/local/mbeir_{key}_task6_cand_pool.jsonl" for key in ("infoseek", "oven")
    ]
    assert "3 (50,004)" in capsys.readouterr().out


OVEN_POOL = "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl"
INFOSEEK_POOL = "cand_pool/local/mbeir_infoseek_task6_cand_pool.jsonl"
OVEN_QRELS = "qrels/test/mbeir_oven_task6_test_qrels.txt"


def find_excuses(report):
    notes = [note for note in report["notes"] if "that are not here" in note["message"]]
    return {note["file"]: (note["line"], note["message"]) for note in notes}


@pytest.mark.parametrize("has_union", [True, False])
def test_a_tree_of_some_columns_has_no_fault(worked_example, has_union, capsys):
    """Pools of InfoSeek and of OVEN's task 8 are not there; 6:7 and 5:9 are of those."""
    (worked_example / INFOSEEK_POOL).unlink()
    picture = {"did": "5:9", "img_path": "mbeir_images/tiny/q1.jpg", "txt": "a tram"}
    row = {**picture, "modality": "image,text"}
    write_lines(worked_example, UNION, [*read_lines(worked_example, UNION), row])
    if not has_union:
        (worked_example / UNION).unlink()
    ((name, (line, message)),) = find_excuses(run(worked_example, status=0)).items()
    if has_union:
        assert (name, line) == (UNION, 5)
        assert message.startswith("2 candidates may be in local pools that are not here")
    else:
        assert (name, line) == (OVEN_QRELS, 2)
        assert message.startswith("1 positive may be in pools that are not here")
    assert "no fault in" in capsys.readouterr().out


@pytest.mark.parametrize("has_union", [True, False])
def test_a_positive_that_the_pools_here_lack_is_a_fault(worked_example, has_union):
    """Whether or not pools of other data sets or of another modality are there."""
    (worked_example / INFOSEEK_POOL).unlink()
    if not has_union:
        (worked_example / UNION).unlink()
    rows = read_lines(worked_example, OVEN_POOL)
    write_lines(worked_example, OVEN_POOL, [rows[0], rows[1], rows[3]])
    (fault,) = run(worked_example)["faults"]
    if has_union:
        assert (fault["file"], fault["line"]) == (UNION, 3)
        assert fault["message"] == "candidate '5:3' is in no local pool of test"
    else:
        assert (fault["file"], fault["line"]) == (OVEN_QRELS, 4)
        assert "positive '5:3' of query '5:3' is not in any pool of test" in fault["message"]


def test_what_is_in_no_pool_of_a_whole_tree_or_of_no_data_set_is_a_fault(worked_example):
    """6:7 with the pool of its column there, and in the union pool; 10:7 is of no data set."""
    write_lines(worked_example, INFOSEEK_POOL, [{"did": "6:8", "txt": "x", "modality": "text"}])
    union = read_lines(worked_example, UNION)
    other = {"did": "6:8", "txt": "x", "modality": "text"}
    write_lines(worked_example, UNION, [*union, other])
    (fault,) = run(worked_example)["faults"]
    assert (fault["file"], fault["line"]) == (UNION, 5)
    write_lines(worked_example, UNION, [*union[:4], other])
    (fault,) = run(worked_example)["faults"]
    assert (fault["file"], fault["line"]) == (OVEN_QRELS, 2)
    (worked_example / INFOSEEK_POOL).unlink()
    write_lines(worked_example, UNION, [*union[:4], {**other, "did": "10:7"}])
    places_found = places(run(worked_example)["faults"])
    assert places_found == [(UNION, 5), (OVEN_QRELS, 2)]


def test_folders_that_cannot_be_written_name_their_option(worked_example, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"check cannot be written .*; name another --cache_dir"):
        check(worked_example, cache_dir=tmp_path / "file")
    with pytest.raises(ValueError, match=r"file cannot be written .*; name another --json_file"):
        check(worked_example, json_file=tmp_path / "file" / "report.json")


def test_a_pool_of_mscoco_needs_its_split(worked_example):
    old = "cand_pool/local/mbeir_mscoco_task0_cand_pool.jsonl"
    row = {"did": "9:1", "modality": "image", "img_path": "mbeir_images/tiny/q1.jpg"}
    write_lines(worked_example, old, [row])
    write_lines(
        worked_example,
        "cand_pool/global/mbeir_union_test_cand_pool.jsonl",
        [row, *read_lines(worked_example, "cand_pool/global/mbeir_union_test_cand_pool.jsonl")],
    )
    (fault,) = run(worked_example)["faults"]
    assert (fault["file"], fault["line"]) == (old, None)
    assert "mbeir_mscoco_task0_test_cand_pool.jsonl" in fault["message"]
    (worked_example / old).rename(worked_example / old.replace("task0", "task0_test"))
    run(worked_example, status=0)


def test_another_order_of_the_union_pool_is_a_note(worked_example):
    union = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    write_lines(worked_example, union, reversed(read_lines(worked_example, union)))
    report = run(worked_example, status=0)
    assert [n["message"] for n in report["notes"] if "order" in n["message"]]


def test_the_expected_counts_sum_to_those_of_the_whole():
    assert tuple(MBEIR_TEST_COUNTS) == CANONICAL_COLUMNS
    assert sum(counts.num_queries for counts in MBEIR_TEST_COUNTS.values()) == 190_573
    assert sum(counts.num_candidates for counts in MBEIR_TEST_COUNTS.values()) == 5_609_079


def test_a_tree_without_files_and_wrong_options_are_named(tmp_path):
    (fault, _) = run(tmp_path)["faults"]
    assert fault["file"] == "instructions/query_instructions.tsv"
    with pytest.raises(FileNotFoundError, match=r"is no folder; name a data root \(--root\)"):
        check(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"num_workers is -1, must be at least 0"):
        check(tmp_path, num_workers=-1)


def test_lines_are_read_fast(tmp_path):
    """A tenth of what one core does, so that only a change of order fails."""
    name = "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl"
    rows = [
        {"did": f"5:{i}", "txt": f"passage {i} " * 8, "modality": "text"} for i in range(1, 40_001)
    ]
    write_lines(tmp_path, name, rows)
    report = run(tmp_path)
    assert report["num_lines"] == 40_000
    assert report["seconds"] < 20
    source = line_table.Source("pool", name, "oven_task6", None)
    size = (tmp_path / name).stat().st_size
    table = line_table.scan_lines(tmp_path, source, 0, size)
    assert np.array_equal(table.ids, 50_000_000 + np.arange(1, 40_001))


def test_the_verb_through_the_command_line(worked_example, tmp_path, capsys):
    report = tmp_path / "report.json"
    args = ["check", f"--root={worked_example}", f"--json_file={report}", "--num_workers=0"]
    main([*args, f"--cache_dir={tmp_path / 'cache'}"])
    assert json.loads(report.read_text())["faults"] == []
    assert not (worked_example / ".tracelib").exists()
    assert len(list((tmp_path / "cache").glob("example-*/check/fine_pictures.bin"))) == 1
    (worked_example / "mbeir_images/tiny/q2.jpg").unlink()
    with pytest.raises(SystemExit) as stop:
        main([*args, "--pictures=header"])
    assert stop.value.code == 1
    assert "query/test/mbeir_oven_task6_test.jsonl:2: picture" in capsys.readouterr().out
