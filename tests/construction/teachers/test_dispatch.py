"""Many requests at a time, by a teacher that needs no server."""

import asyncio
import gc
import tracemalloc

import pytest

from tracelib.construction.teachers.dispatch import run_requests
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module", autouse=True)
def collected():
    """Nothing that other files left behind is laid at this one's door."""
    gc.collect()


class CountingTeacher:
    """Answers by a function of the request's number, after some turns of the loop."""

    name = "counting"

    def __init__(self, answer=None, turns=lambda number: 1):
        self.answer = answer
        self.turns = turns
        self.in_flight = self.most_in_flight = self.num_cancelled = 0

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, error, trace):
        pass

    async def ask(self, request):
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for _ in range(self.turns(request.seed)):
                await asyncio.sleep(0)
            if self.answer and self.answer(request.seed):
                raise self.answer(request.seed)  # a name would tie the error to its own traceback
            return Reply(f"reply {request.key}", "counting", 1, 1, 0.0, "stop")
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.in_flight -= 1


class Source:
    """Yields requests and counts how many were taken."""

    def __init__(self, num_requests):
        self.num_requests = num_requests
        self.num_taken = 0

    def __iter__(self):
        for number in range(self.num_requests):
            self.num_taken += 1
            yield Request(f"{number}", [{"role": "user", "content": "?"}], 8, 0.0, number)


async def stream(source):
    for request in source:
        await asyncio.sleep(0)
        yield request


def run(teacher, source, concurrency=4):
    results = []

    def keep(request, outcome):
        results.append((request.key, outcome))

    asyncio.run(run_requests(source, teacher, keep, concurrency))
    return results


@pytest.mark.parametrize("wrap", [iter, stream])
def test_every_request_has_one_result(wrap):
    results = run(CountingTeacher(turns=lambda number: number % 7), wrap(Source(100)))
    assert len(results) == 100
    assert {key: outcome.text for key, outcome in results} == {
        f"{number}": f"reply {number}" for number in range(100)
    }


def test_results_come_as_they_are_done():
    teacher = CountingTeacher(turns=lambda number: 50 if number == 0 else 1)
    keys = [key for key, _ in run(teacher, Source(10))]
    assert keys[-1] == "0"
    assert sorted(keys[:-1], key=int) == [f"{number}" for number in range(1, 10)]


@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_as_many_are_in_flight_as_are_allowed_and_no_more_are_held(concurrency):
    source, done, most_held = Source(500), 0, 0
    teacher = CountingTeacher(turns=lambda number: 1 + number % 5)

    def keep(request, outcome):
        nonlocal done, most_held
        most_held = max(most_held, source.num_taken - done)
        done += 1

    asyncio.run(run_requests(source, teacher, keep, concurrency))
    assert done == 500
    assert teacher.most_in_flight == concurrency
    assert most_held <= concurrency


def test_failures_are_results_and_stop_nothing():
    def answer(number):
        if number % 3 == 0:
            return TeacherError(False, "truncated", "cut")
        return ZeroDivisionError("a bug") if number % 3 == 1 else None

    results = dict(run(CountingTeacher(answer), Source(30)))
    assert len(results) == 30
    for key, outcome in results.items():
        kind = getattr(outcome, "kind", None)
        assert kind == ("truncated", "unexpected", None)[int(key) % 3]
    assert str(results["1"]) == "ZeroDivisionError: a bug"


def test_cancelled_run_cancels_what_is_in_flight_and_reports_nothing_of_it():
    teacher = CountingTeacher(turns=lambda number: 1 if number < 10 else 10**9)
    results, closed = [], []

    async def watched():
        try:
            for request in Source(1000):
                yield request
        finally:
            closed.append(True)

    async def main():
        source = watched()
        task = asyncio.create_task(
            run_requests(source, teacher, lambda request, _: results.append(request.key), 4)
        )
        while len(results) < 10:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await source.aclose()
        return others

    assert not asyncio.run(main())
    assert len(results) == 10
    assert teacher.in_flight == 0
    assert teacher.num_cancelled == 4
    assert closed == [True]


@pytest.mark.parametrize("where", ["source", "result"])
def test_error_outside_the_teacher_stops_the_run(where):
    teacher = CountingTeacher(turns=lambda number: 1 if number == 0 else 10**9)

    def broken():
        yield from Source(3 if where == "source" else 100)
        raise OSError("disk full")

    def keep(request, outcome):
        if where == "result":
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(run_requests(broken(), teacher, keep, 4))
    assert teacher.in_flight == 0
    assert teacher.num_cancelled >= 2


def test_memory_stays_flat_over_failures_too():
    def answer(number):
        return TeacherError(False, "empty", "x" * 1000) if number % 2 else None

    def measure(num_requests):
        gc.collect()
        gc.disable()  # what only the collector frees would be seen
        tracemalloc.start()
        try:
            asyncio.run(
                run_requests(Source(num_requests), CountingTeacher(answer), lambda *_: None, 8)
            )
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            gc.enable()

    measure(100)
    assert measure(2000) < 1.5 * measure(200) + 20_000


def test_impossible_number_is_named():
    with pytest.raises(ValueError, match="concurrency is 0"):
        run(CountingTeacher(), Source(1), 0)
