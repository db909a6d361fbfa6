"""Retries on a clock that flies."""

import asyncio
from datetime import datetime, timedelta, timezone

import pytest

from tests.construction.teachers.flying_clock import FlyingClock
from tracelib.construction.teachers.retry import RetryPolicy, ask_with_retries, parse_retry_after
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError

REQUEST = Request("1:2/0", [{"role": "user", "content": "?"}], 8, 0.0, 0)
REPLY = Reply("yes", "stub", 1, 1, 0.0, "stop")
NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


def ask(policy, outcomes):
    """Ask a teacher of these outcomes; return what came of it, its calls and the waits."""
    clock, calls = FlyingClock(), []

    async def answer(request):
        calls.append(request)
        outcome = outcomes[len(calls) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    try:
        result = asyncio.run(ask_with_retries(answer, REQUEST, policy, clock))
    except TeacherError as error:
        result = error
    return result, calls, clock.waits


def fail(retryable=True, wait=None):
    return TeacherError(retryable, "server", "status 500", wait)


def test_failures_that_pass_end_in_the_reply_to_the_same_request():
    result, calls, waits = ask(RetryPolicy(), [fail(), fail(), REPLY])
    assert result is REPLY
    assert calls == [REQUEST] * 3
    assert waits == [RetryPolicy().draw_wait_seconds(REQUEST.key, n) for n in (1, 2)]


def test_last_failure_counts_the_attempts():
    result, calls, _ = ask(RetryPolicy(max_attempts=4), [fail()] * 4)
    assert len(calls) == 4
    assert (result.retryable, result.kind) == (True, "server")
    assert str(result) == "status 500 (4 attempts)"


def test_failure_that_does_not_pass_is_not_asked_again():
    result, calls, waits = ask(RetryPolicy(), [fail(retryable=False)])
    assert (len(calls), waits) == (1, [])
    assert "(1 attempt)" in str(result)


def test_server_is_never_asked_before_it_wants():
    policy = RetryPolicy(base_seconds=2.0)
    _, _, waits = ask(policy, [fail(wait=7.0), REPLY])
    assert waits == [7.0 + policy.draw_wait_seconds(REQUEST.key, 1)]


def test_wait_beyond_the_limit_ends_the_attempts():
    result, calls, waits = ask(RetryPolicy(max_retry_after_seconds=60), [fail(wait=61.0)])
    assert (len(calls), waits) == (1, [])
    assert "the server asks to wait 61 s" in str(result)


def test_jitter_is_full_doubles_and_is_bounded():
    policy = RetryPolicy(base_seconds=1.0, max_seconds=8.0)
    for num_failures, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8), (2000, 8)):
        waits = [policy.draw_wait_seconds(f"{n}", num_failures) for n in range(400)]
        assert 0 <= min(waits) < 0.05 * longest
        assert 0.95 * longest < max(waits) <= longest
        assert sum(waits) / len(waits) == pytest.approx(longest / 2, rel=0.1)


def test_wait_depends_on_seed_request_and_failure_only():
    waits = {
        (seed, key, number): RetryPolicy(
            seed=seed, base_seconds=8, max_seconds=8
        ).draw_wait_seconds(key, number)
        for seed in (0, 1)
        for key in "ab"
        for number in (1, 2)
    }
    assert len(set(waits.values())) == 8
    assert waits[0, "a", 1] == RetryPolicy(base_seconds=8).draw_wait_seconds("a", 1)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("12", 12.0),
        ("-3", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Tue, 01 Jan 2030 12:01:00 GMT", 60.0),
        ("Tue, 01 Jan 2030 11:00:00 GMT", 0.0),
        ("Tue, 01 Jan 2030 14:00:00 +0100", 3600.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    zone = timezone(timedelta(hours=5))
    assert parse_retry_after(header, NOON.astimezone(zone)) == seconds


@pytest.mark.parametrize(
    "bad", [{"max_attempts": 0}, {"base_seconds": -1}, {"max_retry_after_seconds": float("nan")}]
)
def test_impossible_policy_is_named(bad):
    with pytest.raises(ValueError, match=f"retry.{next(iter(bad))} is"):
        RetryPolicy(**bad)
