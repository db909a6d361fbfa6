"""The work folder of a build: one journal per phase, and one process at a time.

    WORK/lock              who has the folder
    WORK/assess.jsonl      a row per attempt; the newest of a query and sample counts
    WORK/generate.jsonl    ... as for every phase
    WORK/generate.torn     what a crash left of a line, if one ever did

Files only grow: nothing that was paid for is deleted, and an older row of a sample is its history.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from tracelib.construction.journal.folder_lock import FolderLock
from tracelib.construction.journal.journal_row import Phase
from tracelib.construction.journal.phase_journal import PhaseJournal


class Journal:
    """A work folder, held by this process until it is closed.

    Args:
        folder: Work folder; made when missing.
        sync_rows: Rows of a phase after which the disk is waited for: what a power loss may take.
        sync_seconds: Seconds after which an append waits for the disk.

    Raises:
        JournalError: Another process has the folder, or it cannot be written.
        ValueError: `sync_rows` or `sync_seconds` is out of its range.
    """

    def __init__(self, folder: Path, sync_rows: int = 256, sync_seconds: float = 2.0) -> None:
        if sync_rows < 1 or sync_seconds < 0:
            raise ValueError(
                f"sync_rows {sync_rows} must be at least 1, sync_seconds {sync_seconds} at least 0"
            )
        self.folder = folder
        self._sync_rows, self._sync_seconds = sync_rows, sync_seconds
        self._phases: dict[Phase, PhaseJournal] = {}
        self._lock = FolderLock(folder)

    def open_phase(self, phase: Phase) -> PhaseJournal:
        """Return the journal of a phase, opened at the first call; it is closed with the folder.

        Raises:
            JournalError: Its file cannot be written, or is no journal of this phase.
        """
        if phase not in self._phases:
            path = self.folder / f"{phase}.jsonl"
            journal = PhaseJournal(path, phase, self._sync_rows, self._sync_seconds)
            self._phases[phase] = journal
        return self._phases[phase]

    def list_notes(self) -> list[str]:
        """Return a sentence per opened phase whose file an earlier crash or the disk had hurt."""
        notes = []
        for phase, journal in self._phases.items():
            found = journal.recovery
            if found.num_cut_bytes:
                notes.append(
                    f"{phase}: 1 torn line of {found.num_cut_bytes} bytes was cut; its row is "
                    "computed anew"
                )
            if found.num_damaged:
                notes.append(
                    f"{phase}: {found.num_damaged} lines with a wrong checksum are passed over; "
                    "rows that have no other are computed anew"
                )
        return notes

    def sync(self) -> None:
        """Wait until every row of every phase is on the disk."""
        for journal in self._phases.values():
            journal.sync()

    def close(self) -> None:
        """Sync, close every phase and let go of the folder."""
        try:
            for journal in self._phases.values():
                journal.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
