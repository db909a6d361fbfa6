"""Builds whose teacher fails and whose process is killed: their rows are those of a whole one."""

import os
import signal
import time

import pytest

from tests.construction.teachers.fault_proxy import FAULTS
from tests.construction.tiny_build import (
    check_journals,
    count_rows,
    read_output,
    serve,
    start,
    write_build,
)
from tests.tiny import cut_scenes
from tracelib.cli import main

pytest.importorskip("openai")

MOMENTS = {
    "assess": lambda folder, output: count_rows(folder)["assess"] >= 5,
    "generate": lambda folder, output: count_rows(folder)["generate"] >= 1,
    "late in generate": lambda folder, output: count_rows(folder)["generate"] >= 30,
    "verify": lambda folder, output: count_rows(folder)["verify"] >= 2,
    "output": lambda folder, output: output.exists() and any(output.iterdir()),
}
SLOW_ENOUGH = 0.03  # seconds of a reply: a moment lasts long enough to be met


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("faults") / "scenes")


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The rows of a build that nothing happened to, its journals' counts, and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    folder.mkdir()
    with serve() as url:
        main(["cot", "build", *write_build(folder, root, url)])
    return read_output(root, folder), check_journals(folder)


def check_equal(root, folder, whole):
    rows, counts = whole
    assert check_journals(folder) == counts
    assert read_output(root, folder) == rows


def make_folder(path):
    path.mkdir()
    return path


def wait_for(moment, process, folder, output):
    """Wait for a moment of a running build; return whether it was met."""
    for _ in range(6000):
        if moment(folder, output):
            return process.is_alive()
        if not process.is_alive():
            return False
        time.sleep(0.005)
    raise AssertionError("the build hangs")


def test_a_teacher_of_all_faults_gives_the_rows_of_a_whole_one(root, whole, tmp_path):
    """10 % each of 429, 500, timeout, cut stream, invalid JSON and wrong model."""
    folder, faults = make_folder(tmp_path / "faulty"), {}
    with serve(fault_rate=0.1, faults=faults) as url:
        args = write_build(folder, root, url, timeout_seconds=0.2)
        main(["cot", "build", *args])
    assert all(faults[fault] >= 5 for fault in FAULTS), faults
    check_equal(root, folder, whole)


def test_a_stopped_build_says_so_and_goes_on(root, whole, tmp_path):
    folder, errors = make_folder(tmp_path / "stopped"), tmp_path / "errors"
    with serve(latency_seconds=SLOW_ENOUGH) as url:
        args = write_build(folder, root, url)
        for number in (signal.SIGTERM, signal.SIGINT):
            process = start(["cot", "build", *args], errors)
            before = count_rows(folder)["generate"]
            moment = lambda f, o: count_rows(f)["generate"] > before  # noqa: E731, B023
            assert wait_for(moment, process, folder, root / folder.name)
            os.kill(process.pid, number)
            process.join(20)
            assert process.exitcode == 128 + number
        lines = errors.read_text().splitlines()
        assert lines == [
            f"tracelib: stopped; {folder / 'work'} keeps what is done: the same command goes on"
        ] * len(lines)
        assert len(lines) == 2
        main(["cot", "build", *args])
    check_equal(root, folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("fault_rate", [0.0, 0.1])
def test_a_build_killed_at_five_moments_ends_in_the_rows_of_a_whole_one(
    root, whole, tmp_path, fault_rate
):
    folder, errors = make_folder(tmp_path / f"killed_{fault_rate}"), tmp_path / "errors"
    output = root / folder.name
    with serve(fault_rate, SLOW_ENOUGH) as url:
        args = write_build(folder, root, url, timeout_seconds=0.2)
        for name, moment in MOMENTS.items():
            process = start(["cot", "build", *args], errors)
            assert wait_for(moment, process, folder, output), name
            os.kill(process.pid, signal.SIGKILL)
            process.join(20)
            assert process.exitcode == -signal.SIGKILL
            assert not list(output.glob("*.parquet")), name
        main(["cot", "build", *args])
    check_equal(root, folder, whole)


def test_the_control_a_lost_row_is_seen(root, whole, tmp_path):
    """A build without one of its samples does not have the rows of a whole one."""
    folder = make_folder(tmp_path / "lossy")
    with serve() as url:
        main(["cot", "build", *write_build(folder, root, url), "--generate.num_samples=1"])
    with pytest.raises(AssertionError):
        check_equal(root, folder, whole)
