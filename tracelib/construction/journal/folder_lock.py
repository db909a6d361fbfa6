"""A folder that one process at a time may write to."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from tracelib.construction.journal.journal_row import JournalError


class FolderLock:
    """Holds a folder until `release`, or until the process is gone, however it ends.

    The kernel keeps the lock, so a killed owner leaves none behind; the file `lock` stays, and
    says who had the folder last. A child forked without exec would share it.

    Args:
        folder: Folder; made when missing.

    Raises:
        JournalError: Another holds it, or it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise JournalError(
                f"work folder {folder} cannot be written: {error}; choose another"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
            self.release()
            raise JournalError(
                f"work folder {folder} is in use by {owner or 'another process'} ({error}); wait "
                "for it, end it, or choose another work folder"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(
            self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0
        )

    def release(self) -> None:
        """Let others have the folder; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
