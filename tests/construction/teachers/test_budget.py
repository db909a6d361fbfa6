"""Budgets on a clock that flies: closed forms of when each request is let through."""

import asyncio

import pytest

from tests.construction.teachers.flying_clock import FlyingClock
from tracelib.construction.teachers.budget import Budget, RateLimits, TokenBucket


def take_all(bucket, clock, amounts):
    """Take the amounts at once, each by a task of its own; return when each was let through."""

    async def take(amount):
        await bucket.take(amount)
        return clock.now()

    async def run():
        return await asyncio.gather(*(take(amount) for amount in amounts))

    return asyncio.run(run())


def test_after_the_burst_requests_come_at_the_rate():
    clock = FlyingClock()
    times = take_all(TokenBucket(120, clock), clock, [1] * 10)
    assert times == pytest.approx([0, 0] + [0.5 * n for n in range(1, 9)])


def test_large_amount_passes_when_full_and_its_debt_is_waited_for():
    clock = FlyingClock()
    times = take_all(TokenBucket(60, clock), clock, [30, 1, 1])
    assert times == pytest.approx([0, 30, 31])


def test_idle_hour_saves_up_one_second_only():
    clock = FlyingClock()
    bucket = TokenBucket(120, clock)
    clock.time = 3600.0
    assert take_all(bucket, clock, [1] * 4) == pytest.approx([3600, 3600, 3600.5, 3601])


def test_what_is_given_back_is_there_at_once():
    clock = FlyingClock()
    bucket = TokenBucket(60, clock)
    assert take_all(bucket, clock, [100]) == [0]
    bucket.give_back(100)
    assert take_all(bucket, clock, [1]) == [0]


def test_what_was_used_beyond_the_estimate_is_waited_for():
    clock = FlyingClock()
    bucket = TokenBucket(60, clock)
    assert take_all(bucket, clock, [1]) == [0]
    bucket.give_back(-10)
    assert take_all(bucket, clock, [1]) == pytest.approx([11])


def test_cancelled_wait_takes_nothing():
    async def run():
        clock = FlyingClock()
        bucket = TokenBucket(60, clock)
        await bucket.take(1)
        waiting = asyncio.create_task(bucket.take(1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await bucket.take(1)
        return clock.now()

    assert asyncio.run(run()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("limits", "num_tokens", "seconds"),
    [
        (RateLimits(), 1000, 0),
        (RateLimits(requests_per_minute=60), 1000, 9),
        (RateLimits(tokens_per_minute=60_000), 1000, 9),
        (RateLimits(requests_per_minute=60, tokens_per_minute=30_000), 1000, 19),
    ],
)
def test_ten_requests_take_as_long_as_the_tightest_limit_says(limits, num_tokens, seconds):
    async def run():
        clock = FlyingClock()
        budget = Budget(limits, clock)
        for _ in range(10):
            async with budget.admit(num_tokens):
                pass
        return clock.now()

    # Of 30,000 tokens a minute, the first second's 500 are half a request: the debt of one more.
    assert asyncio.run(run()) == pytest.approx(seconds, abs=1)


def test_settled_tokens_count_as_used():
    async def run(num_used):
        clock = FlyingClock()
        budget = Budget(RateLimits(tokens_per_minute=60_000), clock)
        for _ in range(21):
            async with budget.admit(1000):
                pass
            budget.settle(1000, num_used)
        return clock.now()

    assert asyncio.run(run(1000)) == pytest.approx(20)
    # Half of each estimate comes back, so every other request passes at once.
    assert asyncio.run(run(500)) == pytest.approx(10)


def test_no_more_than_the_limit_are_in_flight():
    most = in_flight = 0

    async def hold(budget):
        nonlocal most, in_flight
        async with budget.admit(1):
            in_flight += 1
            most = max(most, in_flight)
            await asyncio.sleep(0)
            in_flight -= 1

    async def run():
        budget = Budget(RateLimits(concurrency=3), FlyingClock())
        await asyncio.gather(*(hold(budget) for _ in range(20)))

    asyncio.run(run())
    assert most == 3


@pytest.mark.parametrize(
    "bad", [{"concurrency": 0}, {"requests_per_minute": 0}, {"tokens_per_minute": float("nan")}]
)
def test_impossible_limit_is_named(bad):
    with pytest.raises(ValueError, match=f"limits.{next(iter(bad))} is"):
        RateLimits(**bad)
