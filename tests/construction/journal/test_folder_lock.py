import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tracelib.construction.journal.folder_lock import FolderLock
from tracelib.construction.journal.journal_row import JournalError

HOLD = """
import sys, time
from pathlib import Path
from tracelib.construction.journal.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_owner_is_refused_until_the_first_lets_go(tmp_path):
    lock = FolderLock(tmp_path / "work")
    with pytest.raises(
        JournalError, match=r"work is in use by process \d+ on .*another work folder"
    ):
        FolderLock(tmp_path / "work")
    lock.release()
    lock.release()
    FolderLock(tmp_path / "work").release()


def test_a_killed_owner_leaves_no_lock(tmp_path):
    args = [sys.executable, "-c", HOLD, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(JournalError, match=f"in use by process {process.pid} "):
            FolderLock(tmp_path)
        process.send_signal(signal.SIGKILL)
    FolderLock(tmp_path).release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file/work cannot be written"):
        FolderLock(tmp_path / "file" / "work")
