"""Asks again after a failure that may pass: exponential backoff with full jitter.

References:
    Brooker, Exponential Backoff and Jitter:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from tracelib.construction.teachers.clock import Clock
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError


@dataclass(frozen=True)
class RetryPolicy:
    """When and how often a request is asked again.

    Args:
        max_attempts: Attempts in all, 1 and above.
        base_seconds: Longest wait before the second attempt, 0 and above; it doubles each time.
        max_seconds: Longest wait of all, 0 and above.
        max_retry_after_seconds: Longest wait that a server may ask for, 0 and above; a longer one
            ends the attempts.
        seed: Seed of the waits.

    Raises:
        ValueError: A number is out of its range.
    """

    max_attempts: int = 6
    base_seconds: float = 1.0
    max_seconds: float = 60.0
    max_retry_after_seconds: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"retry.max_attempts is {self.max_attempts}; allowed 1 and above")
        for name, seconds in (
            ("base_seconds", self.base_seconds),
            ("max_seconds", self.max_seconds),
            ("max_retry_after_seconds", self.max_retry_after_seconds),
        ):
            if not seconds >= 0:
                raise ValueError(f"retry.{name} is {seconds}; allowed 0 and above")

    def draw_wait_seconds(
        self, key: str, num_failures: int, retry_after_seconds: float | None = None
    ) -> float:
        """Return how long to wait: the same for the same seed, request and failure.

        Args:
            key: Name of the request.
            num_failures: Failures of this request so far, 1 and above.
            retry_after_seconds: What the server asks for; the wait is never shorter, and longer by
                the jitter, so that those who were told the same do not come back at once.
        """
        doubled = self.base_seconds * 2.0 ** min(num_failures - 1, 60)
        longest = min(self.max_seconds, doubled)
        jitter = random.Random(f"{self.seed}/{key}/{num_failures}").random()
        return (retry_after_seconds or 0.0) + longest * jitter


async def ask_with_retries(
    ask: Callable[[Request], Awaitable[Reply]], request: Request, policy: RetryPolicy, clock: Clock
) -> Reply:
    """Ask until there is a reply, a failure that will not pass, or no attempt left.

    Raises:
        TeacherError: The last failure; its message counts the attempts.
    """
    num_failures = 0
    while True:
        try:
            return await ask(request)
        except TeacherError as error:
            num_failures += 1
            asked_for = error.retry_after_seconds
            is_too_long = (asked_for or 0.0) > policy.max_retry_after_seconds
            if not error.retryable or is_too_long or num_failures == policy.max_attempts:
                raise _count_attempts(error, num_failures) from error
        await clock.sleep(policy.draw_wait_seconds(request.key, num_failures, asked_for))


def _count_attempts(error: TeacherError, num_attempts: int) -> TeacherError:
    attempts = "1 attempt" if num_attempts == 1 else f"{num_attempts} attempts"
    seconds = error.retry_after_seconds
    wait = "" if seconds is None else f"; the server asks to wait {seconds:g} s"
    return TeacherError(error.retryable, error.kind, f"{error} ({attempts}{wait})", seconds)


def parse_retry_after(header: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, or None if it does not say.

    Args:
        header: Seconds or a date, as HTTP has them.
        now: The time, with its zone.

    >>> parse_retry_after("1.5", datetime.now(timezone.utc))
    1.5
    >>> noon = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
    >>> parse_retry_after("Tue, 01 Jan 2030 12:00:30 GMT", noon)
    30.0
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        seconds = (date - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
