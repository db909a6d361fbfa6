"""The rows of one phase: a file that only grows, and what is known of its newest rows.

Every append is written to the file at once, so a killed process loses none; the disk is waited for
once per batch, so a power loss takes the rows of the last batch, which are then missing and
computed anew. After an error in writing, nothing more is taken: the next start cuts what is torn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracelib.construction.journal.journal_row import (
    STATUSES,
    JournalError,
    JournalRow,
    Phase,
    Status,
    decode_line,
    encode_line,
)
from tracelib.construction.journal.newest_index import Entry, NewestIndex
from tracelib.construction.journal.row_key import pack_key


@dataclass(frozen=True)
class Recovery:
    """What was found when a phase was opened.

    Args:
        num_rows: Whole rows, older attempts included.
        num_cut_bytes: Bytes of a line without end, cut from the file and kept in its `.torn` file.
        num_damaged: Lines whose checksum is wrong; they stay, and their rows count as missing.
    """

    num_rows: int
    num_cut_bytes: int
    num_damaged: int


class PhaseJournal:
    """The rows of one phase.

    Its folder must be held by this process, as `Journal` sees to.

    Args:
        path: File of the phase; made when missing.
        phase: The phase.
        sync_rows: Rows after which the disk is waited for.
        sync_seconds: Seconds after which an append waits for the disk.

    Raises:
        JournalError: The file cannot be written, or is no journal of this phase.
    """

    def __init__(self, path: Path, phase: Phase, sync_rows: int, sync_seconds: float) -> None:
        self.path, self.phase = path, phase
        self._sync_rows, self._sync_seconds = sync_rows, sync_seconds
        self._index = NewestIndex()
        self._num_unsynced, self._synced_at = 0, time.monotonic()
        try:
            self._file = path.open("ab", buffering=0)
            self._reader = path.open("rb")
        except OSError as error:
            raise JournalError(f"{path} cannot be opened: {error}") from error
        try:
            self.recovery, self._num_bytes = self._recover()
            self.sync()
            _sync_folder(path.parent)
        except BaseException:
            self._file.close()
            self._reader.close()
            raise

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return self._num_bytes

    def _recover(self) -> tuple[Recovery, int]:
        """Index the file and cut a line without end; return what was found, and the length."""
        num_rows = num_damaged = offset = 0
        torn = b""
        for line in self._reader:
            if not line.endswith(b"\n"):
                torn = line
                break
            if (row := decode_line(line)) is None:
                num_damaged += 1
            elif row.phase != self.phase:
                raise JournalError(f"{self.path} holds a row of phase {row.phase!r}; who put it?")
            else:
                num_rows += 1
                self._set_newest(row, offset)
            offset += len(line)
        if num_damaged and not num_rows:
            raise JournalError(
                f"{self.path}: none of its {num_damaged} lines is a row of a journal; move the "
                "file away or choose another work folder"
            )
        if torn:
            with self.path.with_suffix(".torn").open("ab") as file:
                file.write(torn + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._file.truncate(offset)
        return Recovery(num_rows, len(torn), num_damaged), offset

    def append(self, rows: Sequence[JournalRow]) -> None:
        """Write rows; each becomes the newest of its query and sample.

        Raises:
            JournalError: The file cannot be written, now or in an earlier append.
            ValueError: A row is of another phase, or not made of JSON values.
        """
        for row in rows:
            if row.phase != self.phase:
                raise ValueError(f"a row of phase {row.phase!r} is no row of {self.path}")
        lines = [encode_line(row) for row in rows]
        self._write(b"".join(lines))
        for row, line in zip(rows, lines, strict=True):
            self._set_newest(row, self._num_bytes)
            self._num_bytes += len(line)
        self._num_unsynced += len(rows)
        is_late = time.monotonic() - self._synced_at >= self._sync_seconds
        if self._num_unsynced >= self._sync_rows or is_late:
            self.sync()

    def _write(self, lines: bytes) -> None:
        if self._file.closed:
            raise JournalError(f"{self.path} is closed; a new start goes on with it")
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._fail(error)

    def sync(self) -> None:
        """Wait until every row is on the disk.

        Raises:
            JournalError: The disk refused.
        """
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._fail(error)
            self._num_unsynced, self._synced_at = 0, time.monotonic()

    def _fail(self, error: OSError) -> None:
        self._file.close()
        raise JournalError(
            f"{self.path} cannot be written: {error}; make room and start again, which goes on "
            "after the last whole row"
        ) from error

    def close(self) -> None:
        """Sync and close the file; a second call does nothing."""
        try:
            self.sync()
        finally:
            self._file.close()
            self._reader.close()

    def find_entry(self, query_id: str, sample: int) -> Entry | None:
        """Return what is known of the newest row of a query and sample without reading it."""
        return self._index.get(pack_key(query_id, sample))

    def read_row(self, query_id: str, sample: int) -> JournalRow | None:
        """Return the newest row of a query and sample, or None if there is none.

        Raises:
            JournalError: The file was changed since it was opened.
        """
        entry = self.find_entry(query_id, sample)
        return None if entry is None else self._read_line(entry.offset)

    def read_present(self, query_id: str, sample: int, input_hash: str) -> JournalRow | None:
        """Return the newest row if it was made from an input, otherwise None.

        Args:
            query_id: `D:N` of the query.
            sample: Which of its samples.
            input_hash: The input that counts.

        Raises:
            JournalError: The file was changed since it was opened.
        """
        entry = self.find_entry(query_id, sample)
        is_present = entry is not None and entry.input_hash == int(input_hash, 16)
        return self.read_row(query_id, sample) if is_present else None

    def read_newest(self, status: Status | None = None) -> Iterator[JournalRow]:
        """Yield the newest row of every query and sample, in the order in which they were written.

        Rows that are written meanwhile are not among them.

        Args:
            status: Only rows with this status.
        """
        for offset in self._index.sort_offsets():
            row = self._read_line(int(offset))
            if status is None or row.status == status:
                yield row

    def read_history(self) -> Iterator[JournalRow]:
        """Yield every row that was ever written and is whole, in order."""
        with self.path.open("rb") as file:
            for line in file:
                if (row := decode_line(line)) is not None:
                    yield row

    def _read_line(self, offset: int) -> JournalRow:
        self._reader.seek(offset)
        row = decode_line(self._reader.readline())
        if row is None:
            raise JournalError(f"{self.path} was changed at byte {offset} while it was in use")
        return row

    def _set_newest(self, row: JournalRow, offset: int) -> None:
        status, input_hash = STATUSES.index(row.status), int(row.input_hash, 16)
        self._index.set(row.key, Entry(offset, input_hash, row.attempt, status))


def _sync_folder(folder: Path) -> None:
    """Have the names of new files reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
