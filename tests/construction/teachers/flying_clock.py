"""A clock whose waits take no time."""

from __future__ import annotations

import asyncio


class FlyingClock:
    """Starts at 0; a wait moves it on at once."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)
        self.time += seconds
