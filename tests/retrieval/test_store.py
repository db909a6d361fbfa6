import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tracelib.retrieval.store import (
    SHARD_ROWS,
    StoredPart,
    StoreError,
    build_row_type,
    compute_digest,
)

SIZE = 6
NUM = 2 * SHARD_ROWS + 100
KEY = {"weights": "abc", "gate": "never"}


def embed(places, scale=1.0):
    rows = np.random.default_rng(0).standard_normal((NUM, SIZE))
    return (rows[places] * scale).astype(np.float32)


def build(folder, key=KEY, row_type=None, num=NUM):
    row_type = build_row_type(SIZE) if row_type is None else row_type
    return StoredPart(folder, key, np.arange(1, num + 1) * 10, row_type)


def batches(size=64):
    edges = [0, SHARD_ROWS, 2 * SHARD_ROWS, NUM]
    for start, stop in itertools.pairwise(edges):
        for first in range(start, stop, size):
            yield list(range(first, min(stop, first + size)))


def find_committed(part):
    return np.concatenate([part.find_committed(shard) for shard in range(part.num_shards)])


def read(part, field):
    values = np.empty((len(part.ids), *part.row_type[field].shape), part.row_type[field].base)
    part.read_into(field, values)
    return values


def fill(part, size=64):
    for batch in batches(size):
        part.write(batch, {"embedding": embed(batch)})


def read_files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_what_is_written_is_read_as_unit_vectors(tmp_path):
    part = build(tmp_path / "a")
    assert not find_committed(part).any()
    fill(part)
    expected = embed(np.arange(NUM)).astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_array_equal(read(part, "embedding"), expected.astype(np.float32))
    assert find_committed(part).all()
    assert [p.name for p in sorted((tmp_path / "a").iterdir())] == [
        "00000.npy",
        "00001.npy",
        "00002.npy",
        "key.json",
    ]


def test_batches_may_come_in_any_order_and_size(tmp_path):
    fill(build(tmp_path / "a"), 64)
    part = build(tmp_path / "b")
    for batch in reversed(list(batches(7))):
        part.write(batch[::-1], {"embedding": embed(batch[::-1])})
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")


def test_thoughts_are_kept_beside_the_embedding(tmp_path):
    part = build(tmp_path / "a", row_type=build_row_type(SIZE, "float16", 3), num=2)
    values = {
        "embedding": np.ones((2, SIZE), np.float32),
        "thinks": np.array([True, False]),
        "think_probability": np.array([0.25, np.nan], np.float32),
        "is_forced": np.array([False, True]),
        "num_tokens": np.array([2, 0]),
        "token_ids": np.array([[5, 6, 0], [0, 0, 0]]),
    }
    part.write([0, 1], values)
    for name, value in values.items():
        if name != "embedding":
            np.testing.assert_array_equal(read(part, name), value)
    assert read(part, "embedding").dtype == np.float16


def test_other_embeddings_are_refused_by_name(tmp_path):
    build(tmp_path / "a")
    build(tmp_path / "a")
    with pytest.raises(
        StoreError, match=r"weights 'abc' there, weights 'def' asked for.*store_dir"
    ):
        build(tmp_path / "a", {**KEY, "weights": "def"})
    with pytest.raises(StoreError, match=r"num_records '2148' there"):
        build(tmp_path / "a", num=NUM + 1)
    with pytest.raises(StoreError, match="row"):
        build(tmp_path / "a", row_type=build_row_type(SIZE, "float16"))


def test_records_in_another_order_are_refused(tmp_path):
    fill(build(tmp_path / "a"))
    other = StoredPart(tmp_path / "a", KEY, np.arange(NUM, 0, -1) * 10, build_row_type(SIZE))
    with pytest.raises(StoreError, match=r"00000\.npy holds other records"):
        read(other, "embedding")


def test_an_unfinished_part_is_not_read(tmp_path):
    part = build(tmp_path / "a")
    part.write([0, 1], {"embedding": embed([0, 1])})
    assert find_committed(part).sum() == 2
    with pytest.raises(StoreError, match=r"00000\.npy is missing.*not whole"):
        read(part, "embedding")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_embedding_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="embedding of record 20 has norm"):
        build(tmp_path / "a").write(
            [0, 1], {"embedding": np.stack([np.ones(SIZE), np.full(SIZE, value)])}
        )


def test_a_torn_or_altered_row_is_missing_again(tmp_path):
    part = build(tmp_path / "a")
    part.write([0, 1, 2], {"embedding": embed([0, 1, 2])})
    rows = np.lib.format.open_memmap(tmp_path / "a" / "00000.partial.npy", "r+")
    rows["embedding"][1, 0] += 1e-3
    rows.flush()
    assert find_committed(build(tmp_path / "a"))[:4].tolist() == [True, False, True, False]
    fill(build(tmp_path / "b"))
    fill(build(tmp_path / "a"))
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")


WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_store import batches, build, embed, find_committed
part = build(Path({folder!r}))
committed = find_committed(part)
for batch in batches():
    if not committed[batch].all():
        part.write(batch, {{"embedding": embed(batch)}})
        print(batch[0], flush=True)
        time.sleep(0.001)
"""


def test_a_killed_writer_resumes_to_the_same_bytes(tmp_path):
    fill(build(tmp_path / "whole"))
    code = WRITER.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "cut"))
    kills, written = 0, 0
    for lines in (3, 9, 1, 12, None):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        if lines is None:
            written += len(process.communicate()[0].split())
            assert process.returncode == 0
            break
        for _ in range(lines):
            written += bool(process.stdout.readline())
        process.kill()
        written += len(process.communicate()[0].split())
        kills += process.returncode == -signal.SIGKILL
    assert kills == 4
    assert written - kills <= len(list(batches())) <= written
    assert read_files(tmp_path / "cut") == read_files(tmp_path / "whole")


def test_a_writer_killed_before_it_closed_a_shard_is_made_up_for(tmp_path):
    fill(build(tmp_path / "whole"))
    fill(build(tmp_path / "cut"))
    (tmp_path / "cut" / "00001.npy").rename(tmp_path / "cut" / "00001.partial.npy")
    part = build(tmp_path / "cut")
    assert find_committed(part).all()
    assert [part.is_closed(shard) for shard in range(3)] == [True, False, True]
    part.close_whole(1)
    assert read_files(tmp_path / "cut") == read_files(tmp_path / "whole")


def test_one_shard_is_open_at_a_time(tmp_path):
    part = build(tmp_path / "a", num=20 * SHARD_ROWS)
    before = len(list(Path("/proc/self/maps").read_text().splitlines()))
    for shard in range(20):
        part.write([shard * SHARD_ROWS], {"embedding": np.ones((1, SIZE))})
    after = len(list(Path("/proc/self/maps").read_text().splitlines()))
    assert after - before < 10


def test_a_shard_that_cannot_be_made_is_said(tmp_path):
    part = build(tmp_path / "b")
    part.folder = tmp_path / "missing"
    with pytest.raises(StoreError, match=r"00000\.partial\.npy cannot be made.*store_dir"):
        part.write([0], {"embedding": np.ones((1, SIZE))})


def test_a_row_that_is_not_committed_is_not_copied(tmp_path):
    part = build(tmp_path / "a")
    part.write([0], {"embedding": embed([0])})
    assert part.read_committed(0)["id"] == [10]
    with pytest.raises(StoreError, match="lacks a row"):
        part.read_committed(1)
    with pytest.raises(StoreError, match="lacks a row"):
        part.read_committed(SHARD_ROWS)


def test_digest_depends_on_values_not_on_order():
    assert compute_digest({"a": 1, "b": 2}) == compute_digest({"b": 2, "a": 1})
    assert compute_digest({"a": 1}) != compute_digest({"a": 2})


def test_key_is_readable(tmp_path):
    build(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "key.json").read_text())["weights"] == "abc"
