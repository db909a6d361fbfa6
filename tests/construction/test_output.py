import json
import os
import shutil
from pathlib import Path

import pytest
from datasets import Features, load_dataset

from tests.construction.sample_rows import append_generated, chain_of, good_text
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.output import (
    DROP_FEATURES,
    DROPPED_FILE,
    ROW_FEATURES,
    write_selected,
)
from tracelib.construction.queries import QuerySettings, SourceQueries
from tracelib.construction.selection import Drop, Selected, Thought
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.jsonl import DataError
from tracelib.data.layout import Layout
from tracelib.data.mbeir import MBEIRReader

FOLDER = "rationales_cot"


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return shutil.copytree(tiny_scenes, tmp_path_factory.mktemp("output") / "scenes")


@pytest.fixture(scope="module")
def queries(root):
    return SourceQueries(QuerySettings(root))


@pytest.fixture
def rows(queries, tmp_path):
    """A third of the queries with a thought, a third direct, a third dropped."""
    with Journal(tmp_path / "work", sync_seconds=60) as work:
        chain, found = chain_of(work), []
        for number, query in enumerate(queries):
            if number % 3 == 0:
                append_generated(work, query.query_id, 0, good_text(f"Card {number}."))
                generated = chain.read_generated(query, 0)
                thought = Thought(generated, f"Why {number}.", f"Card {number}.", 0.75, 22, 2)
                found.append(Selected(query, 1, "rule", thought))
            elif number % 3 == 1:
                found.append(Selected(query, 0, "rule", None))
            else:
                found.append(Drop(query.query_id, "scenes", None, "select", "unanswered", "none"))
        yield found


def write(rows, root, folder=FOLDER):
    return write_selected(rows, Layout(root, folder), "train", ["scenes"])


def test_rows_are_mbeir_cot_and_what_was_dropped_is_beside_them(root, rows, queries):
    counts = write(rows, root)
    folder = root / FOLDER
    assert (counts.num_reasoned["scenes"], counts.num_direct["scenes"]) == (54, 53)
    assert counts.num_drops == {("scenes", "select", "unanswered"): 53}
    assert {path.name for path in counts.files} == {path.name for path in folder.iterdir()}
    path = str(folder / "mbeir_scenes_train_rationales.parquet")
    table = load_dataset("parquet", data_files=path, split="train", cache_dir=root / "cache")
    assert table.features == ROW_FEATURES
    assert len(table) == 107
    record = json.loads((root / "query/train/mbeir_scenes_train.jsonl").read_text().split("\n")[0])
    first, second = table[0], table[1]
    shared = ("qid", "query_img_path", "query_modality", "task_id", "pos_cand_list")
    assert {name: first[name] for name in shared} == {name: record[name] for name in shared}
    assert first["query_txt"] == (next(iter(queries)).text or None)
    assert {name: first[name] for name in list(ROW_FEATURES)[6:]} == {
        "difficulty": 1,
        "reasoning": "Why 0.",
        "answer": "Card 0.",
        "cot_conf": 0.75,
        "source": "teacher",
        "teacher": "large",
        "sample": 0,
        "template": "all",
        "prompt_hash": "ab12",
        "reasoning_tokens": 22,
        "answer_tokens": 2,
    }
    empty = [name for name, value in second.items() if value is None and name[:5] != "query"]
    assert empty == [
        *("reasoning", "answer", "cot_conf"),
        *("sample", "template", "prompt_hash", "reasoning_tokens", "answer_tokens"),
    ]
    assert (second["difficulty"], second["teacher"]) == (0, "rule")
    path = str(folder / DROPPED_FILE)
    dropped = load_dataset("parquet", data_files=path, split="train", cache_dir=root / "cache")
    assert Features(dropped.features) == DROP_FEATURES
    assert dropped[0]["rule"] == "unanswered"


def test_training_takes_the_folder_as_it_is(root, rows):
    write(rows, root)
    data = MBEIRDataModule(root, rationale_folder=FOLDER, only_annotated=True, num_workers=0)
    data.setup("fit")
    trained = data.train_dataset.queries
    kept = {row.query.query_id: row for row in rows if isinstance(row, Selected)}
    assert sorted(trained.query_ids) == sorted(kept)
    for query in trained:
        row = kept[query.query_id]
        assert query.difficulty == row.difficulty
        thought = query.rationale
        assert (thought is None) == (row.thought is None)
        assert thought is None or thought.reasoning == row.thought.reasoning
    data = MBEIRDataModule(root, rationale_folder=FOLDER, num_workers=0)
    data.setup("fit")
    assert len(data.train_dataset.queries) == 160


def test_files_are_whole_or_not_there(root, rows):
    before = {path: path.read_bytes() for path in write(rows, root, "rationales_b").files}

    def break_off():
        yield from rows[:60]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        write(break_off(), root, "rationales_b")
    folder = root / "rationales_b"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert {path: path.read_bytes() for path in write(rows, root, "rationales_b").files} == before
    drops = [row for row in rows if isinstance(row, Drop)]
    assert [path.name for path in write(drops, root, "rationales_b").files] == [DROPPED_FILE]
    assert [path.name for path in folder.iterdir()] == [DROPPED_FILE]
    assert MBEIRReader(root, None, "rationales_b").read_queries("train").is_annotated.sum() == 0


def test_files_are_on_disk_before_they_have_their_names(root, rows, monkeypatch):
    synced = set()
    fsync, rename = os.fsync, Path.replace

    def watch_sync(file):
        synced.add(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def watch_rename(path, target):
        assert str(path) in synced
        return rename(path, target)

    folder = root / "rationales_c"
    folder.mkdir()
    (folder / f".{DROPPED_FILE}.1.tmp").write_bytes(b"what a killed run left")
    monkeypatch.setattr(os, "fsync", watch_sync)
    monkeypatch.setattr(Path, "replace", watch_rename)
    counts = write(rows, root, "rationales_c")
    assert len(synced) == len(counts.files) == 2
    assert set(folder.iterdir()) == set(counts.files)


def test_a_folder_with_json_lines_or_outside_the_root_is_refused(root, rows):
    with pytest.raises(DataError, match=r"rationales.jsonl holds .*; choose another output.folder"):
        write(rows, root, "rationales")
    for folder in ("../elsewhere", "/elsewhere", ""):
        with pytest.raises(DataError, match=r"is no folder below .* \(output.folder\)"):
            write(rows, root, folder)
