"""Batches out of single asks."""

import asyncio
import threading

import pytest

from tracelib.construction.teachers.batching import RequestBatches
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError


def make_request(number):
    return Request(str(number), [], 8, 0.0, number)


def reply_to(request):
    return Reply(f"reply {request.key}", "m", 1, 1, 0.0, "stop")


class Answerer:
    """Answers at once and remembers the batches; some requests fail, some break it."""

    def __init__(self, failing=(), breaking=()):
        self.failing, self.breaking = set(failing), set(breaking)
        self.batches = []
        self.threads = set()

    def __call__(self, requests):
        keys = [request.key for request in requests]
        self.batches.append(keys)
        self.threads.add(threading.get_ident())
        if self.breaking & set(keys):
            raise MemoryError("no room")
        failure = TeacherError(False, "picture", "no picture")
        return [failure if r.key in self.failing else reply_to(r) for r in requests]


def run(answerer, batch_size, act):
    async def inner():
        batches = RequestBatches(answerer, batch_size)
        try:
            return await act(batches)
        finally:
            await batches.close()

    return asyncio.run(inner())


def test_those_who_ask_together_are_answered_together_and_in_their_order():
    async def ask_twice(batches, number):
        return [(await batches.ask(make_request(number))).text for _ in range(2)]

    async def act(batches):
        return await asyncio.gather(*(ask_twice(batches, number) for number in range(10)))

    answerer = Answerer()
    texts = run(answerer, 4, act)
    assert texts == [[f"reply {number}"] * 2 for number in range(10)]
    assert [len(batch) for batch in answerer.batches] == [4] * 5
    assert len(answerer.threads) == 1
    assert threading.get_ident() not in answerer.threads


def test_failure_of_one_is_its_own_and_a_breakdown_is_everybodys_for_once():
    async def act(batches):
        asked = [batches.ask(make_request(number)) for number in range(3)]
        first = await asyncio.gather(*asked, return_exceptions=True)
        answerer.breaking.clear()
        return first, await batches.ask(make_request(0))

    answerer = Answerer(failing=["1"], breaking=["2"])
    broken, after = run(answerer, 8, act)
    assert [(error.kind, error.retryable) for error in broken] == [("server", True)] * 3
    assert len({id(error) for error in broken}) == 3
    assert "MemoryError: no room" in str(broken[0])
    assert after.text == "reply 0"
    answerer = Answerer(failing=["1"])
    good, failed, last = run(
        answerer,
        8,
        lambda batches: asyncio.gather(
            *(batches.ask(make_request(number)) for number in range(3)), return_exceptions=True
        ),
    )
    assert (good.text, last.text, failed.kind) == ("reply 0", "reply 2", "picture")


def test_who_gave_up_is_not_answered_and_holds_up_nobody():
    async def act(batches):
        asked = [asyncio.create_task(batches.ask(make_request(number))) for number in range(3)]
        await asyncio.sleep(0)
        asked[0].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    answerer = Answerer()
    gone, first, second = run(answerer, 8, act)
    assert isinstance(gone, asyncio.CancelledError)
    assert (first.text, second.text) == ("reply 1", "reply 2")
    assert answerer.batches == [["1", "2"]]


def test_closing_waits_for_the_batch_at_work_and_cancels_who_waits():
    started, may_end = threading.Event(), threading.Event()

    def answer(requests):
        started.set()
        assert may_end.wait(10)
        return [reply_to(request) for request in requests]

    async def inner():
        batches = RequestBatches(answer, 1)
        asked = [asyncio.create_task(batches.ask(make_request(number))) for number in range(2)]
        await asyncio.to_thread(started.wait)
        closing = asyncio.create_task(batches.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        may_end.set()
        await closing
        return await asyncio.gather(*asked, return_exceptions=True)

    results = asyncio.run(inner())
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


def test_all_giving_up_leaves_the_next_one_a_turn():
    async def act(batches):
        asked = asyncio.create_task(batches.ask(make_request(0)))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return await batches.ask(make_request(1))

    answerer = Answerer()
    assert run(answerer, 2, act).text == "reply 1"
    assert ["1"] in answerer.batches
