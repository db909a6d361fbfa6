"""Shows how far the phases are: bars in a terminal, now and then a line anywhere else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from tracelib.construction.journal.progress import Progress
from tracelib.construction.phase_driver import OnProgress
from tracelib.construction.phase_outcome import Counts
from tracelib.construction.teachers.price import TeacherPrice, format_cost

_REFRESH_SECONDS = 0.2
_LINE_SECONDS = 60.0


class ProgressDisplay:
    """Shows the phases that are watched, inside `with`.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
        )
        self._bars = Bars(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def watch(self, phase: str, price: TeacherPrice = TeacherPrice()) -> OnProgress:
        """Show a phase; return what is to be told of its progress.

        Args:
            phase: Its name.
            price: Price of the tokens that it takes.
        """
        bar = self._bars.add_task(phase, total=None, rest="counting")
        shown_at, lined_at = 0.0, time.monotonic()
        num_before: int | None = None  # rows of earlier runs

        def show(progress: Progress, counts: Counts) -> None:
            nonlocal shown_at, lined_at, num_before
            now = time.monotonic()
            num_through = progress.num_rows - progress.num_due
            if num_before is None:
                num_before = num_through
            if now - shown_at < _REFRESH_SECONDS and progress.num_due:
                return
            shown_at = now
            seconds = max(now - counts.started_seconds, 1e-6)
            rest = describe_progress(progress, counts, num_through - num_before, seconds, price)
            self._bars.update(bar, completed=num_through, total=progress.num_rows, rest=rest)
            is_due = now - lined_at >= _LINE_SECONDS or not progress.num_due
            if is_due and not self._console.is_terminal:
                lined_at = now
                line = f"{phase}: {num_through:,} of {progress.num_rows:,}" + (rest and f", {rest}")
                self._console.print(line, highlight=False, soft_wrap=True)

        return show


def describe_progress(
    progress: Progress, counts: Counts, num_new: int, seconds: float, price: TeacherPrice
) -> str:
    """Return speed, tokens, cost and the time that is left, as far as there are any.

    Args:
        progress: How far the phase is.
        counts: What this run has asked for.
        num_new: Rows that this run is through with.
        seconds: How long it has run, above 0.
        price: Price of the tokens.

    >>> from tracelib.construction.teachers.price import Price
    >>> progress = Progress(900, 0, 0, 90, 10, 0)
    >>> counts = Counts(100, 2, 40_000, 12_000)
    >>> describe_progress(progress, counts, 100, 10.0, TeacherPrice(Price(1.0, 5.0)))
    '10.0 rows/s, 10 dropped, 52,000 tokens, cost 0.10, 2 requests failed, 0:01:30 left'
    """
    rate = num_new / seconds
    parts = [f"{rate:,.1f} rows/s"] if num_new else []
    if progress.num_dropped:
        parts.append(f"{progress.num_dropped:,} dropped")
    if progress.num_quarantined:
        parts.append(f"{progress.num_quarantined:,} quarantined")
    if num_tokens := counts.prompt_tokens + counts.completion_tokens:
        parts.append(f"{num_tokens:,} tokens")
    if cost := price.price.compute_cost(counts.prompt_tokens, counts.completion_tokens):
        parts.append(f"cost {format_cost(cost, price.is_bound)}")
    if counts.num_failures:
        parts.append(f"{counts.num_failures:,} requests failed")
    if progress.num_due and rate > 0:
        minutes, left = divmod(round(progress.num_due / rate), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{left:02} left")
    return ", ".join(parts)
