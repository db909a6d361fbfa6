"""How much may be asked at a time, and in a minute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tracelib.construction.teachers.clock import Clock

_BURST_SECONDS = 1.0  # what an idle budget saves up: more would break the minute it starts in


@dataclass(frozen=True)
class RateLimits:
    """How much a teacher may be asked.

    Args:
        concurrency: Requests in flight at most, 1 and above.
        requests_per_minute: Attempts a minute, above 0, or None for no limit.
        tokens_per_minute: Tokens of requests and replies a minute, above 0, or None for no limit. A
            request reserves an estimate; what it did not use is given back when its reply is there.

    Raises:
        ValueError: A number is out of its range.
    """

    concurrency: int = 64
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"limits.concurrency is {self.concurrency}; allowed 1 and above")
        for name, rate in (
            ("requests_per_minute", self.requests_per_minute),
            ("tokens_per_minute", self.tokens_per_minute),
        ):
            if rate is not None and not rate > 0:
                raise ValueError(f"limits.{name} is {rate}; allowed above 0, or null for no limit")


class TokenBucket:
    """A rate in the long run: what is taken beyond what flowed in has to be waited for.

    Whoever comes first is served first. An amount above what the bucket holds is let through when
    the bucket is full, and the next ones wait until the debt is paid.

    Args:
        per_minute: Inflow, above 0.
        clock: Tells the time and waits.
    """

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self._per_second = per_minute / 60
        self._capacity = self._per_second * _BURST_SECONDS
        self._clock = clock
        self._level = self._capacity
        self._filled_at = clock.now()
        self._turn = asyncio.Lock()

    async def take(self, amount: float) -> None:
        """Wait until the amount is there, then take it; a cancelled wait takes nothing."""
        async with self._turn:
            self._fill()
            # A full bucket is enough for any amount, and so is its rounding error short of it.
            while (missing := min(amount, self._capacity) - self._level) > 1e-9 * self._capacity:
                await self._clock.sleep(missing / self._per_second)
                self._fill()
            self._level -= amount

    def give_back(self, amount: float) -> None:
        """Return what was taken and not used; a negative amount is taken afterwards."""
        self._level = min(self._capacity, self._level + amount)

    def _fill(self) -> None:
        now = self._clock.now()
        inflow = (now - self._filled_at) * self._per_second
        self._level = min(self._capacity, self._level + inflow)
        self._filled_at = now


class Budget:
    """Lets requests through as the limits allow.

    Args:
        limits: The limits.
        clock: Tells the time and waits.
    """

    def __init__(self, limits: RateLimits, clock: Clock) -> None:
        self._places = asyncio.Semaphore(limits.concurrency)
        self._requests = _make_bucket(limits.requests_per_minute, clock)
        self._tokens = _make_bucket(limits.tokens_per_minute, clock)

    @asynccontextmanager
    async def admit(self, num_tokens: int) -> AsyncIterator[None]:
        """Wait for a turn and hold a place while the request is in flight.

        Args:
            num_tokens: Estimate of the tokens of request and reply.
        """
        async with self._places:
            if self._tokens:
                await self._tokens.take(num_tokens)
            if self._requests:
                await self._requests.take(1)
            yield

    def settle(self, num_reserved: int, num_used: int) -> None:
        """Correct the estimate of a request by what it used; one that failed keeps its estimate."""
        if self._tokens:
            self._tokens.give_back(num_reserved - num_used)


def _make_bucket(per_minute: float | None, clock: Clock) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, clock)
