"""What is shown of a phase: in a terminal, and where there is none."""

import io
import time

from rich.console import Console

from tracelib.construction.journal.progress import Progress
from tracelib.construction.phase_outcome import Counts
from tracelib.construction.progress_display import ProgressDisplay


def show(*steps, is_terminal=False):
    """Return what is shown of a phase that has run for two seconds."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=120)
    with ProgressDisplay(console) as display:
        tell = display.watch("generate")
        for progress, counts in steps:
            counts.started_seconds = time.monotonic() - 2
            tell(progress, counts)
    return file.getvalue()


def test_a_phase_with_nothing_to_do_is_shown_as_done():
    done = (Progress(0, 0, 0, 78, 0, 2), Counts())
    assert show(done) == "generate: 80 of 80, 2 quarantined\n"
    assert show((Progress(0, 0, 0, 80, 0, 0), Counts())) == "generate: 80 of 80\n"
    last = show(done, is_terminal=True).rpartition("generate")[2]
    assert "80/80" in last
    assert "counting" not in last


def test_the_rate_is_of_the_rows_of_this_run():
    start = (Progress(4, 0, 0, 76, 0, 0), Counts())
    failed = (Progress(4, 0, 0, 76, 0, 0), Counts(num_failures=1))
    end = (Progress(0, 0, 0, 80, 0, 0), Counts(4, 1))
    assert show(start, failed, end) == "generate: 80 of 80, 2.0 rows/s, 1 requests failed\n"
