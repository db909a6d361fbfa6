import os
import resource

import pytest

from tracelib.construction.journal.journal_row import (
    JournalError,
    JournalRow,
    encode_line,
)
from tracelib.construction.journal.work_folder import Journal

HASH = "0123456789abcdef"


def make_row(number, attempt=1, **changes):
    fields = {"status": "done", "result": {"text": f"{number} {attempt}"}, "error": None, **changes}
    return JournalRow(f"9:{number}", "generate", 0, input_hash=HASH, attempt=attempt, **fields)


ROWS = [make_row(1), make_row(2), make_row(1, 2), make_row(3), make_row(2, 2), make_row(4)]
LINES = [encode_line(row) for row in ROWS]
NEWEST = [ROWS[2], ROWS[3], ROWS[4], ROWS[5]]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "generate.jsonl"


def read_phase(folder):
    with Journal(folder) as journal:
        phase = journal.open_phase("generate")
        return phase.recovery, list(phase.read_newest()), journal.list_notes()


def test_the_newest_row_counts_and_the_older_stay(tmp_path, path):
    with Journal(tmp_path) as journal:
        phase = journal.open_phase("generate")
        phase.append(ROWS[:3])
        assert list(phase.read_newest()) == [ROWS[1], ROWS[2]]
        phase.append(ROWS[3:])
        for _ in range(2):
            assert list(phase.read_newest()) == NEWEST
            assert phase.read_row("9:1", 0) == ROWS[2]
            assert phase.read_row("9:1", 1) is None
            assert phase.read_present("9:1", 0, HASH) == ROWS[2]
            assert phase.read_present("9:1", 0, HASH[::-1]) is None
            assert phase.read_present("9:1", 1, HASH) is None
            assert list(phase.read_history()) == ROWS
            phase = journal.open_phase("generate")
    assert path.read_bytes() == b"".join(LINES)
    recovery, rows, notes = read_phase(tmp_path)
    assert (recovery.num_rows, rows, notes) == (6, NEWEST, [])


def test_newest_rows_can_be_asked_for_by_status(tmp_path):
    failed = make_row(2, 3, status="failed", result={}, error="timeout")
    with Journal(tmp_path) as journal:
        phase = journal.open_phase("generate")
        phase.append([*ROWS, failed])
        assert list(phase.read_newest("failed")) == [failed]
        assert list(phase.read_newest("done")) == [ROWS[2], ROWS[3], ROWS[5]]


def test_a_file_cut_at_any_byte_loses_the_torn_line_only(tmp_path, path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of them, and no power is lost
    ends = [sum(map(len, LINES[:count])) for count in range(len(LINES) + 1)]
    for length in range(ends[-1] + 1):
        path.write_bytes(b"".join(LINES)[:length])
        num_whole = sum(end <= length for end in ends) - 1
        recovery, _, notes = read_phase(tmp_path)
        assert recovery.num_rows == num_whole
        assert recovery.num_cut_bytes == length - ends[num_whole]
        assert recovery.num_damaged == 0
        assert bool(notes) == (length not in ends)
        assert path.stat().st_size == ends[num_whole]
        with Journal(tmp_path) as journal:
            journal.open_phase("generate").append(ROWS[num_whole:])
        assert path.read_bytes() == b"".join(LINES)
    assert read_phase(tmp_path)[1] == NEWEST


def test_what_is_cut_is_kept_beside(tmp_path, path):
    path.write_bytes(LINES[0] + LINES[1][:30])
    assert read_phase(tmp_path)[2] == [
        "generate: 1 torn line of 30 bytes was cut; its row is computed anew"
    ]
    assert (tmp_path / "generate.torn").read_bytes() == LINES[1][:30] + b"\n"


def test_a_tail_of_zeros_is_torn(tmp_path, path):
    path.write_bytes(LINES[0] + LINES[1][:30] + b"\0" * 8192)
    recovery, rows, _ = read_phase(tmp_path)
    assert (recovery.num_cut_bytes, rows) == (8222, [ROWS[0]])


def test_a_damaged_line_is_passed_over_counted_and_left(tmp_path, path):
    damaged = LINES[2].replace(b'"1 2"', b'"1 3"')
    path.write_bytes(b"".join([*LINES[:2], damaged, b"\0" * 40 + LINES[3], *LINES[4:]]))
    before = path.read_bytes()
    recovery, rows, notes = read_phase(tmp_path)
    assert (recovery.num_rows, recovery.num_cut_bytes, recovery.num_damaged) == (4, 0, 2)
    assert rows == [ROWS[0], ROWS[4], ROWS[5]]
    assert "2 lines with a wrong checksum" in notes[0]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"mine": 1}\n', "none of its 1 lines is a row of a journal; move the file away"),
        (encode_line(JournalRow("9:1", "filter", 0, "done", HASH, 1, {"a": 1})), "phase 'filter'"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_left(tmp_path, path, content, message):
    path.write_bytes(content)
    with Journal(tmp_path) as journal, pytest.raises(JournalError, match=message):
        journal.open_phase("generate")
    assert path.read_bytes() == content


def test_a_full_disk_ends_the_run_and_the_next_goes_on(tmp_path, path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path) as journal:
        phase = journal.open_phase("generate")
        phase.append(ROWS[:2])
        whole = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 40, hard))
        try:
            with pytest.raises(JournalError, match=r"cannot be written.*make room and start again"):
                phase.append(ROWS[2:4])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == whole + 40  # torn
        assert list(phase.read_newest()) == ROWS[:2]
        with pytest.raises(JournalError, match="closed; a new start goes on with it"):
            phase.append(ROWS[4:])
    recovery, rows, _ = read_phase(tmp_path)
    assert (recovery.num_cut_bytes, rows) == (40, ROWS[:2])


@pytest.mark.parametrize(
    ("sync_rows", "sync_seconds", "num_syncs"), [(2, 60.0, 3), (100, 60.0, 0), (100, 0.0, 6)]
)
def test_the_disk_is_waited_for_once_per_batch(
    tmp_path, monkeypatch, sync_rows, sync_seconds, num_syncs
):
    synced, fsync = [], os.fsync
    with Journal(tmp_path, sync_rows, sync_seconds) as journal:
        phase = journal.open_phase("generate")
        monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file)))
        for row in ROWS:
            phase.append([row])
        assert len(synced) == num_syncs
    assert len(synced) == num_syncs + 1


def test_a_row_of_another_phase_is_refused(tmp_path, path):
    with Journal(tmp_path) as journal, pytest.raises(ValueError, match="a row of phase 'generate'"):
        journal.open_phase("assess").append(ROWS)


def test_a_file_changed_in_use_is_noticed(tmp_path, path):
    with Journal(tmp_path) as journal:
        phase = journal.open_phase("generate")
        phase.append(ROWS)
        path.write_bytes(LINES[0] + b"\0" * sum(map(len, LINES[1:])))
        with pytest.raises(JournalError, match="was changed at byte"):
            phase.read_row("9:4", 0)
