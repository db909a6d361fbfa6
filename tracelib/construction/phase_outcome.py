"""What comes of one work of a phase, and the counts of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from tracelib.construction.journal.schedule import Schedule, Work


@dataclass(frozen=True)
class Outcome:
    """What came of a work.

    Args:
        status: `done`; `dropped`, a verdict against the sample; or `failed`.
        result: JSON values; a failed one may have none.
        error: Why it failed.
        is_final: Whether another attempt is of no use.
    """

    status: Literal["done", "dropped", "failed"]
    result: dict[str, Any]
    error: str = ""
    is_final: bool = False

    @classmethod
    def done(cls, result: dict[str, Any]) -> Outcome:
        """Return the outcome of a work that has its result."""
        return cls("done", result)

    @classmethod
    def dropped(cls, result: dict[str, Any]) -> Outcome:
        """Return the outcome of a work whose verdict is against its sample."""
        return cls("dropped", result)

    @classmethod
    def failed(
        cls, error: str, is_final: bool = False, result: dict[str, Any] | None = None
    ) -> Outcome:
        """Return the outcome of a work that is to be tried again, or given up."""
        return cls("failed", result or {}, error, is_final)


def record_outcome(schedule: Schedule, work: Work, outcome: Outcome) -> None:
    """Write down what came of a work; raises as the schedule does."""
    if outcome.status == "done":
        schedule.record_done(work, outcome.result)
    elif outcome.status == "dropped":
        schedule.record_dropped(work, outcome.result)
    else:
        schedule.record_failed(work, outcome.error, outcome.is_final, outcome.result)


@dataclass
class Counts:
    """What a phase has asked for in this run.

    Args:
        num_replies: Whole replies.
        num_failures: Requests without one, after the teacher's own retries.
        prompt_tokens: Tokens of the requests that were answered.
        completion_tokens: Tokens of the replies.
        started_seconds: When the run started, on the monotonic clock.
    """

    num_replies: int = 0
    num_failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started_seconds: float = field(default_factory=time.monotonic)
