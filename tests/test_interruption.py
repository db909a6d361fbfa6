"""A `predict` that is killed goes on where it was, and ends with the bytes of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import write_recipe

REPOSITORY = Path(__file__).parents[1]
SETTINGS = ["--data.eval_batch_size=8", "--data.eval_window=1", "--data.num_workers=0"]
TWO = ["--trainer.strategy=ddp", "--trainer.devices=2"]


@pytest.fixture(scope="module")
def make_args(tiny_scenes, tiny_backbone, tmp_path_factory):
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        return folder, [*write_recipe(folder, tiny_scenes, tiny_backbone), *SETTINGS]

    return make


def start(folder, args):
    # a pipe would outlive a killed process in its children
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tracelib", "predict", *args],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(folder, args):
    assert start(folder, args).wait(timeout=240) == 0, (folder / "log.txt").read_text()
    return read_store(folder)


def read_store(folder):
    paths = (path for path in (folder / "embeddings").rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def kill(folder, args, rng):
    """Kill a predict at a random moment of its writing; return whether it was not over by then."""
    before = count_changes(folder)
    process = start(folder, args)
    while process.poll() is None and count_changes(folder) == before:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.5))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def count_changes(folder):
    return max((p.stat().st_mtime_ns for p in folder.glob("embeddings/**/*.npy")), default=0)


@pytest.fixture(scope="module")
def whole(make_args):
    """The store of a predict that was left alone, by name of file."""
    found = finish(*make_args("whole"))
    assert not any("partial" in name for name in found)
    assert sum(name.endswith(".npy") for name in found) == 16  # a shard per column and side
    return found


@pytest.mark.parametrize(
    "settings",
    [pytest.param([], marks=pytest.mark.slow), TWO],
    ids=["one_process", "two_processes"],
)
def test_a_killed_predict_resumes_to_the_same_bytes(make_args, whole, settings):
    folder, args = make_args("cut")
    assert kill(folder, args, random.Random(0))
    assert read_store(folder) != whole
    assert finish(folder, [*args, *settings]) == whole


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], TWO], ids=["one_process", "two_processes"])
def test_ten_kills_change_nothing(make_args, whole, settings):
    folder, args = make_args("ten")
    rng = random.Random(1)
    num_kills = sum(kill(folder, args, rng) for _ in range(10))
    assert num_kills >= 3  # later ones may find everything done
    assert finish(folder, [*args, *settings]) == whole
