import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.construction.journal.faulty_phase import (
    NUM_IN_FLIGHT,
    iterate_inputs,
    read_newest,
    record_planned,
    run_phase,
)
from tracelib.construction.journal import newest_index
from tracelib.construction.journal.journal_row import JournalError
from tracelib.construction.journal.schedule import PhaseInput, Schedule
from tracelib.construction.journal.work_folder import Journal

ROOT = Path(__file__).parents[2]
OLD, NEW = "0" * 16, "1" * 16


@pytest.fixture
def phase(tmp_path):
    with Journal(tmp_path) as journal:
        yield journal.open_phase("generate")


def make_schedule(phase, hashes, **settings):
    inputs = [PhaseInput(f"9:{number}", 0, value) for number, value in enumerate(hashes, 1)]
    return Schedule(phase, lambda: inputs, **settings)


def take_all(schedule):
    found = []
    while (work := schedule.take()) is not None:
        found.append(work)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The newest rows of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run_phase(folder, 0, 40)
    rows = read_newest(folder)
    assert sorted(rows) == sorted((i.query_id, i.sample) for i in iterate_inputs(40))
    assert {row.status for row in rows.values()} == {"done", "dropped", "quarantined"}
    assert {row.attempt for row in rows.values() if row.status == "done"} == {1, 2, 3}
    return rows


@pytest.mark.parametrize("seed", range(1, 9))
def test_the_order_of_completion_changes_no_row(tmp_path, whole, seed):
    num_records = run_phase(tmp_path, seed, 40)
    assert read_newest(tmp_path) == whole
    assert num_records == len((tmp_path / "generate.jsonl").read_bytes().splitlines())


@pytest.fixture
def no_fsync(monkeypatch):
    """Hundreds of runs end here and none by a power loss, which is what the disk is waited for."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.usefixtures("no_fsync")
def test_an_end_after_any_write_changes_no_row(tmp_path, whole):
    total = run_phase(tmp_path / "all", 0, 40)
    for num_records in range(total + 1):
        folder = tmp_path / f"{num_records}"
        assert run_phase(folder, 1, 40, max_records=num_records) == num_records
        assert run_phase(folder, 2, 40) == total - num_records  # nothing is computed twice
        assert read_newest(folder) == whole


@pytest.mark.usefixtures("no_fsync")
def test_an_end_after_every_write_changes_no_row(tmp_path, whole):
    while run_phase(tmp_path, 3, 40, max_records=1):
        pass
    assert read_newest(tmp_path) == whole


def test_five_kills_change_no_row(tmp_path):
    run_phase(tmp_path / "whole", 0, 300)
    path = tmp_path / "killed" / "generate.jsonl"
    total = (tmp_path / "whole" / "generate.jsonl").stat().st_size
    for number in range(5):
        args = [
            "-m",
            "tests.construction.journal.faulty_phase",
            str(path.parent),
            str(number),
            "300",
        ]
        process = subprocess.Popen([sys.executable, *args], cwd=ROOT)
        goal = total * (number + 1) // 6
        while process.poll() is None and not (path.exists() and path.stat().st_size >= goal):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert goal <= path.stat().st_size < total
        if number % 2:  # and the machine lost the end of what was not yet on its disk
            os.truncate(path, path.stat().st_size - 70)
    run_phase(path.parent, 9, 300)
    assert read_newest(path.parent) == read_newest(tmp_path / "whole")


def test_other_settings_make_all_stale_and_the_old_rows_stay(tmp_path, whole):
    run_phase(tmp_path, 0, 40)
    before = (tmp_path / "generate.jsonl").read_bytes()
    run_phase(tmp_path, 0, 40, settings="second", max_records=30)
    run_phase(tmp_path, 1, 40, settings="second")
    run_phase(tmp_path / "fresh", 0, 40, settings="second")
    assert read_newest(tmp_path) == read_newest(tmp_path / "fresh")
    assert (tmp_path / "generate.jsonl").read_bytes().startswith(before)


def test_only_missing_stale_and_failed_rows_are_due(phase):
    first = make_schedule(phase, [OLD] * 6)
    one, two, three, four, five, _ = take_all(first)
    first.record_done(one, {"text": "a"})
    first.record_done(two, {"text": "b"})
    first.record_dropped(three, {"reason": "c"})
    first.record_failed(four, "timeout")
    first.record_failed(five, "too large", is_final=True, result={"text": "d"})
    schedule = make_schedule(phase, [OLD, NEW, OLD, OLD, OLD, OLD])
    assert vars(schedule.progress) == {
        "num_missing": 1,
        "num_stale": 1,
        "num_failed": 1,
        "num_done": 1,
        "num_dropped": 1,
        "num_quarantined": 1,
    }
    due = [(work.query_id, work.state, work.attempt) for work in take_all(schedule)]
    assert due == [("9:2", "stale", 1), ("9:4", "failed", 2), ("9:6", "missing", 1)]
    assert schedule.progress.num_due == 3  # what is in flight is not done


def test_a_row_is_quarantined_after_its_last_attempt_in_any_run(phase):
    for attempt, max_attempts in ((1, 3), (2, 3), (3, 3)):
        schedule = make_schedule(phase, [OLD], max_attempts=max_attempts)
        work = schedule.take()
        assert work.attempt == attempt
        schedule.record_failed(work, f"error {attempt}")
    assert schedule.take() is None
    assert (schedule.progress.num_quarantined, schedule.progress.num_done) == (1, 0)
    assert [row.status for row in phase.read_history()] == ["failed", "failed", "quarantined"]
    assert make_schedule(phase, [OLD]).take() is None
    assert make_schedule(phase, [NEW]).take().state == "stale"


def test_quarantined_rows_get_all_attempts_again_when_asked_for(phase):
    for settings in ({}, {"retry_quarantined": True}):
        schedule = make_schedule(phase, [OLD], max_attempts=2, **settings)
        attempts = []
        while (work := schedule.take()) is not None:
            attempts.append(work.attempt)
            schedule.record_failed(work, "still broken")
        assert attempts == [1, 2]
        assert schedule.progress.num_quarantined == 1


def test_what_this_run_quarantined_is_not_tried_again_in_it(phase):
    first = make_schedule(phase, [OLD] * 2)
    for work in take_all(first):
        first.record_failed(work, "refused", is_final=True)
    schedule = make_schedule(phase, [OLD] * 2, retry_quarantined=True)
    taken = []
    while (work := schedule.take()) is not None:
        taken.append((work.query_id, work.attempt))
        schedule.record_failed(work, "refused", is_final=work.query_id == "9:1")
    assert taken == [("9:1", 1), ("9:2", 1), ("9:2", 2), ("9:2", 3)]


def test_a_failure_comes_again_in_the_same_run_after_all_else(phase):
    schedule = make_schedule(phase, [OLD] * 3)
    one, two = schedule.take(), schedule.take()
    schedule.record_failed(one, "timeout")
    three = schedule.take()
    assert schedule.take() is None  # two and three may fail, too
    schedule.record_failed(three, "timeout")
    assert schedule.take() is None
    schedule.record_done(two, {"text": "b"})
    again = take_all(schedule)
    assert [(work.query_id, work.attempt) for work in again] == [("9:1", 2), ("9:3", 2)]
    for work in again:
        schedule.record_done(work, {"text": "c"})
    assert schedule.take() is None
    assert schedule.progress.num_done == schedule.progress.num_rows == 3


def test_what_is_released_costs_no_attempt(phase):
    schedule = make_schedule(phase, [OLD], max_attempts=1)
    schedule.release(schedule.take())
    assert schedule.take() is None
    assert schedule.progress.num_missing == 1
    assert make_schedule(phase, [OLD], max_attempts=1).take().attempt == 1


def test_the_end_of_a_work_is_told_once_and_never_blank(phase):
    schedule = make_schedule(phase, [OLD] * 2)
    work = schedule.take()
    with pytest.raises(ValueError, match="it is done, so it needs a result"):
        schedule.record_done(work, {})
    with pytest.raises(ValueError, match="gives no error"):
        schedule.record_failed(work, "")
    schedule.record_done(work, {"text": "a"})
    for tell in (lambda: schedule.record_failed(work, "late"), lambda: schedule.release(work)):
        with pytest.raises(ValueError, match="query 9:1, sample 0 is not in flight"):
            tell()
    assert (schedule.progress.num_done, schedule.progress.num_missing) == (1, 1)
    assert len(list(phase.read_history())) == 1


def test_bad_settings_are_named(phase):
    inputs = [PhaseInput("9:1", 2, OLD), PhaseInput("9:3", 0, OLD), PhaseInput("9:1", 2, NEW)]
    with pytest.raises(ValueError, match=r"query 9:1, sample 2 comes twice.*phase generate; 1 do"):
        Schedule(phase, lambda: inputs)
    with pytest.raises(ValueError, match="max_attempts 0 is not in 1"):
        make_schedule(phase, [OLD], max_attempts=0)


def test_what_could_not_be_written_is_not_counted(phase):
    schedule = make_schedule(phase, [OLD])
    work = schedule.take()
    phase.close()
    with pytest.raises(JournalError, match="is closed"):
        schedule.record_done(work, {"text": "a"})
    assert schedule.progress.num_missing == 1
    schedule.release(work)  # it is still in flight


def measure_growth(phase, num_queries):
    """Return the bytes that a run over two samples of each query leaves behind and adds at most."""
    tracemalloc.start()
    try:
        schedule = Schedule(phase, lambda: iterate_inputs(num_queries))
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        flying = []
        while (work := schedule.take()) is not None or flying:
            flying += [work] if work is not None else []
            if len(flying) == NUM_IN_FLIGHT or work is None:
                record_planned(schedule, flying.pop(0))
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert schedule.progress.num_due == 0
    return left - before, peak - before


@pytest.mark.parametrize(
    ("num_queries", "max_recent"),
    [(3_000, 256), pytest.param(100_000, 4096, marks=pytest.mark.slow)],
)
def test_memory_grows_by_the_index_alone(phase, monkeypatch, num_queries, max_recent):
    monkeypatch.setattr(newest_index, "_MAX_RECENT", max_recent)
    left, peak = measure_growth(phase, num_queries)
    index, recent = 27 * 2 * num_queries, 400 * max_recent  # bytes
    assert left < index + recent + 50_000
    assert peak < 3 * index + 2 * recent + 50_000
