import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tracelib.data import table_cache
from tracelib.data.formats import CANDIDATES, QRELS
from tracelib.data.jsonl import DataError, write_rows
from tracelib.data.table_cache import hash_source, open_table

OPEN = """
import sys
from pathlib import Path
from tracelib.data.formats import CANDIDATES
from tracelib.data.table_cache import open_table
source, folder, go = map(Path, sys.argv[1:])
print("ready", flush=True)
while not go.exists():
    pass
table = open_table(source, folder, CANDIDATES)
stat = (table.folder / "table.arrow").stat()
print(len(table), stat.st_ino, stat.st_mtime_ns)
"""


def write_pool(path, number=3, word="word"):
    rows = (
        {"did": f"1:{n}", "txt": f"{word} {n}", "modality": "text"} for n in range(1, number + 1)
    )
    write_rows(path, rows)
    wait_for_another_time(path)


def wait_for_another_time(path):
    """Make the file old enough for its time of change to be trusted."""
    old = path.stat().st_mtime_ns - 10**9
    os.utime(path, ns=(old, old))


def read_texts(table):
    return table.read_column("text").to_pylist()


def stamp(table):
    stat = (table.folder / "table.arrow").stat()
    return stat.st_ino, stat.st_mtime_ns


@pytest.fixture
def source(tmp_path):
    write_pool(tmp_path / "pool.jsonl")
    return tmp_path / "pool.jsonl"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "pool.jsonl"


def open_pool(source, folder):
    return open_table(source, folder, CANDIDATES)


def list_names(folder):
    return sorted(re.sub("v1-.{16}", "v1", path.name) for path in folder.iterdir())


def test_it_is_converted_once(source, folder, capfd):
    first = open_pool(source, folder)
    assert read_texts(first) == ["word 1", "word 2", "word 3"]
    manifest = (folder / "manifest.json").stat().st_mtime_ns
    again = open_pool(source, folder)
    assert stamp(again) == stamp(first)
    assert (folder / "manifest.json").stat().st_mtime_ns == manifest  # not hashed either
    assert list_names(folder) == [".lock", "manifest.json", "v1"]
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "ids.npy",
        "rows.npy",
        "table.arrow",
    ]
    content = json.loads((folder / "manifest.json").read_text())
    digest = subprocess.run(["sha256sum", source], capture_output=True, text=True).stdout[:64]
    assert capfd.readouterr() == ("", "")  # progress is for terminals
    assert content == {
        "version": 1,
        "source_size": source.stat().st_size,
        "source_mtime_ns": source.stat().st_mtime_ns,
        "sha256": digest,
        "num_rows": 3,
    }


def test_it_is_not_converted_again_when_only_the_time_changes(source, folder):
    first = open_pool(source, folder)
    os.utime(source, ns=(10**18, 10**18))
    assert stamp(open_pool(source, folder)) == stamp(first)
    assert json.loads((folder / "manifest.json").read_text())["source_mtime_ns"] == 10**18


def test_it_is_converted_again_when_the_content_changes(source, folder):
    first = open_pool(source, folder)
    write_pool(source, 2, "other")
    os.utime(source, ns=(10**18, 10**18))
    second = open_pool(source, folder)
    assert read_texts(second) == ["other 1", "other 2"]
    assert read_texts(first) == ["word 1", "word 2", "word 3"]  # who has it open keeps it
    assert list_names(folder) == [".lock", "manifest.json", "v1"]  # the old table is gone


def test_a_change_that_time_and_size_may_not_show_is_seen(source, folder):
    open_pool(source, folder)
    stat = (folder / "manifest.json").stat()
    source.write_text(source.read_text().replace("word", "card"))
    moment = stat.st_mtime_ns - 10**6  # within one tick of a coarse clock
    os.utime(source, ns=(moment, moment))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "source_mtime_ns": moment}))
    os.utime(folder / "manifest.json", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert read_texts(open_pool(source, folder))[0] == "card 1"


def test_a_new_format_version_converts_again(source, folder, monkeypatch):
    first = open_pool(source, folder)
    monkeypatch.setattr(table_cache, "FORMAT_VERSION", 2)
    second = open_pool(source, folder)
    assert (first.folder.name[:3], second.folder.name[:3]) == ("v1-", "v2-")
    assert not first.folder.exists()
    monkeypatch.undo()
    assert open_pool(source, folder).folder == first.folder


@pytest.mark.parametrize("name", ["manifest.json", "v1-*"])
def test_what_was_removed_is_made_again(source, folder, name):
    open_pool(source, folder)
    (path,) = folder.glob(name)
    path.rename(path.with_name("elsewhere"))
    assert read_texts(open_pool(source, folder)) == ["word 1", "word 2", "word 3"]


def test_a_digest_does_not_need_a_table(source, folder):
    digest = hash_source(source, folder)
    assert list_names(folder) == [".lock", "manifest.json"]
    table = open_pool(source, folder)
    assert (
        hash_source(source, folder)
        == digest
        == json.loads((folder / "manifest.json").read_text())["sha256"]
    )
    before = stamp(table)
    os.utime(source, ns=(10**18, 10**18))
    assert hash_source(source, folder) == digest
    assert stamp(open_pool(source, folder)) == before
    write_pool(source, 5)
    assert hash_source(source, folder) != digest
    assert len(open_pool(source, folder)) == 5


def test_a_broken_file_leaves_nothing(source, folder):
    with source.open("a") as file:
        file.write("{broken\n")
    for _ in range(2):
        with pytest.raises(DataError, match=re.escape(f"{source}:4: ")):
            open_pool(source, folder)
        assert list_names(folder) == [".lock"]
    write_pool(source)
    assert len(open_pool(source, folder)) == 3


def test_a_broken_file_does_not_cost_the_last_good_table(source, folder):
    first = open_pool(source, folder)
    content = source.read_text()
    source.write_text(content + "{broken\n")
    with pytest.raises(DataError):
        open_pool(source, folder)
    source.write_text(content)
    assert stamp(open_pool(source, folder)) == stamp(first)


def test_a_file_without_a_row_is_named(source, folder, tmp_path):
    source.write_text("")
    with pytest.raises(DataError, match=re.escape(f"{source}: the file is empty")):
        open_pool(source, folder)
    source.write_text("5:1 0 5:1 0 6\n")
    with pytest.raises(DataError, match=re.escape(f"{source}: the file holds no positive")):
        open_table(source, folder, QRELS)


def test_a_repeated_id_is_named_with_its_later_line(source, folder):
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join([*lines, lines[2], lines[0]]))
    with pytest.raises(DataError, match=re.escape(f"{source}:4: did '1:3' occurs twice")):
        open_pool(source, folder)


def test_a_cache_that_cannot_be_written_names_the_option(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/pool: .*data\.cache_dir"):
        open_pool(source, tmp_path / "file" / "pool")


def test_a_source_that_is_no_file_is_not_the_cache_s_fault(tmp_path, folder):
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(DataError, match=r"dir\.jsonl: the file cannot be read") as caught:
        open_pool(tmp_path / "dir.jsonl", folder)
    assert "cache_dir" not in str(caught.value)


def start(source, folder, go):
    """Start a process that opens the table when the file `go` appears."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN, source, folder, go], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_conversion_leaves_nothing_half(tmp_path, folder):
    source = tmp_path / "pool.jsonl"
    write_pool(source, 150_000)
    (tmp_path / "go").touch()
    process = start(source, folder, tmp_path / "go")
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 2**20 for path in folder.glob("*.tmp/table.arrow")):
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = folder.glob("*.tmp")  # it was in the middle
    assert not list(folder.glob("v1-*"))
    assert not (folder / "manifest.json").exists()
    table = open_pool(source, folder)
    assert table.index.find(np.array([10_150_000])).tolist() == [149_999]
    assert not left.exists()


def test_processes_that_open_at_once_convert_once(tmp_path, folder):
    source = tmp_path / "pool.jsonl"
    write_pool(source, 20_000)
    processes = [start(source, folder, tmp_path / "go") for _ in range(2)]
    (tmp_path / "go").touch()
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    number, *made = map(int, printed[0].split())
    assert printed[0] == printed[1]
    assert (number, tuple(made)) == (20_000, stamp(open_pool(source, folder)))
