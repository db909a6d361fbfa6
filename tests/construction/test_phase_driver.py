"""A phase between its schedule and its teacher, whole, failing, down and killed."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.construction.journal.faulty_phase import iterate_inputs, read_newest
from tests.construction.rule_teacher import RuleTeacher
from tests.construction.teachers.fault_proxy import FaultProxy
from tests.construction.teachers.stub_endpoint import StubEndpoint, complete
from tracelib.construction.journal.progress import Progress
from tracelib.construction.journal.schedule import Schedule
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.phase_driver import (
    Outcome,
    TeacherDownError,
    run_locally,
    run_phase,
)
from tracelib.construction.teachers.teacher import Request, TeacherError

NUM_QUERIES = 40  # two samples of each


def build_request(work):
    messages = [{"role": "user", "content": f"query {work.query_id}, sample {work.sample}"}]
    return Request(f"{work.query_id}/{work.sample}", messages, 10, 0.0, work.sample)


def read_reply(work, reply):
    if "unreadable" in reply.text:
        raise ValueError("no verdict")
    if "huge" in reply.text:
        float(10**400)
    if "deep" in reply.text:
        json.loads("[" * 100_000)
    return (Outcome.dropped if "bad" in reply.text else Outcome.done)({"text": reply.text})


def fail(kind="connection", retryable=True):
    return TeacherError(retryable, kind, "planned")


def run(
    folder,
    teacher,
    num_queries=NUM_QUERIES,
    concurrency=8,
    seen=None,
    skipped=(),
    stops_after_failures=False,
    **changes,
):
    """Run the phase; return its progress."""

    def list_inputs():
        for given in iterate_inputs(num_queries):
            if f"{given.query_id}/{given.sample}" not in skipped:
                yield given

    def on_progress(progress, counts):
        if seen is not None:
            seen.append((progress, counts.num_replies, counts.num_failures, counts.prompt_tokens))
        if stops_after_failures and progress.num_failed == progress.num_due:
            raise InterruptedError

    with Journal(folder) as journal:
        phase = journal.open_phase("generate")
        schedule = Schedule(phase, list_inputs, **changes)
        try:
            asyncio.run(
                run_phase(schedule, teacher, build_request, read_reply, concurrency, on_progress)
            )
        finally:
            assert schedule._in_flight == {}
    return schedule.progress


def count_rows(folder):
    return Counter(row.status for row in read_newest(folder).values())


def test_every_work_gets_its_own_reply(tmp_path):
    teacher, seen = RuleTeacher(lambda request: request.messages[0]["content"]), []
    assert run(tmp_path, teacher, seen=seen).num_done == 80
    rows = read_newest(tmp_path)
    assert all(r.result["text"] == f"query {q}, sample {s}" for (q, s), r in rows.items())
    assert (teacher.most_in_flight, teacher.num_entered) == (8, 1)
    assert [p.num_done for p, *_ in seen] == list(range(81))
    assert seen[-1] == (Progress(0, 0, 0, 80, 0, 0), 80, 0, 800)


def test_a_teacher_with_nothing_to_do_is_not_entered(tmp_path):
    run(tmp_path, RuleTeacher(lambda request: "yes"))
    again, seen = RuleTeacher(), []
    assert run(tmp_path, again, seen=seen).num_done == 80
    assert (again.num_entered, again.requests) == (0, [])
    assert seen == [(Progress(0, 0, 0, 80, 0, 0), 0, 0, 0)]


def test_verdicts_and_unreadable_replies_are_written_down(tmp_path):
    def answer(request):
        texts = {"9:1/0": "a bad one", "9:2/1": "unreadable", "9:3/0": "huge", "9:3/1": "deep"}
        return texts.get(request.key, "fine")

    teacher = RuleTeacher(answer)
    run(tmp_path, teacher)
    assert count_rows(tmp_path) == {"done": 76, "dropped": 1, "quarantined": 3}
    rows = read_newest(tmp_path)
    assert rows["9:3", 0].error.startswith("unreadable reply: int too large")
    assert rows["9:3", 1].error.startswith("unreadable reply: maximum recursion")
    row = rows["9:2", 1]
    paid = {"prompt_tokens": 10, "completion_tokens": 5}
    assert row.result == {"reply": "unreadable", "model": "rule", **paid}
    assert (row.attempt, row.error) == (3, "unreadable reply: no verdict")


def test_failures_are_tried_again_and_given_up_after_the_last_attempt(tmp_path):
    asked = Counter()

    def answer(request):
        asked[request.key] += 1
        if request.key == "9:5/0":
            return fail("timeout")
        if request.key == "9:6/0":
            return fail("refused", retryable=False)
        fails_twice = int(request.key[2:-2]) <= 10 and request.seed
        return fail("server") if fails_twice and asked[request.key] < 3 else "fine"

    run(tmp_path, RuleTeacher(answer))
    rows = read_newest(tmp_path)
    assert count_rows(tmp_path) == {"done": 78, "quarantined": 2}
    assert (rows["9:5", 0].attempt, rows["9:5", 0].error) == (3, "timeout: planned")
    assert (rows["9:6", 0].attempt, asked["9:6/0"]) == (1, 1)
    assert [rows[f"9:{n}", 1].attempt for n in (1, 10, 11, 40)] == [3, 3, 1, 1]


def test_a_teacher_that_never_answers_stops_the_run_and_counts_no_attempt(tmp_path):
    teacher = RuleTeacher(lambda request: fail())
    with pytest.raises(TeacherDownError, match=r"64 requests failed one after another.*connection"):
        run(tmp_path, teacher)
    assert len(teacher.requests) < 64 + 8
    assert read_newest(tmp_path) == {}
    with pytest.raises(TeacherDownError, match="6 requests failed"):
        run(tmp_path, teacher, num_queries=3)
    assert read_newest(tmp_path) == {}


def test_a_teacher_that_dies_on_the_way_loses_nothing(tmp_path):
    teacher = RuleTeacher()
    teacher.answer = lambda request: "fine" if len(teacher.requests) < 50 else fail()
    with pytest.raises(TeacherDownError, match="one after another"):
        run(tmp_path, teacher)
    rows = read_newest(tmp_path)
    assert count_rows(tmp_path)["quarantined"] == 0
    assert 40 <= count_rows(tmp_path)["done"] < 50
    assert max(row.attempt for row in rows.values()) == 1
    assert run(tmp_path, RuleTeacher(lambda request: "fine")).num_done == 80


@pytest.mark.parametrize("kind", ["server", "empty", "timeout"])
def test_many_that_never_succeed_do_not_hold_up_the_rest(tmp_path, kind):
    """Left alone in later passes, where no reply comes between them."""
    bad = {f"9:{number}/1" for number in range(1, 80, 2)}
    teacher = RuleTeacher(lambda r: fail(kind) if r.key in bad else "fine")
    progress = run(tmp_path, teacher, num_queries=100)
    assert (progress.num_done, progress.num_quarantined) == (160, 40)
    rows = [row for row in read_newest(tmp_path).values() if row.status == "quarantined"]
    assert {(row.attempt, row.error) for row in rows} == {(3, f"{kind}: planned")}


def test_many_of_the_last_that_never_succeed_stop_one_run_alone(tmp_path):
    """A teacher that dies at the end looks the same: it costs an attempt and no row."""
    bad = {f"9:{number}/{sample}" for number in range(61, 101) for sample in (0, 1)}
    for kind, retryable in (("timeout", True), ("picture", False)):
        folder = tmp_path / kind
        run(folder, RuleTeacher(lambda request: "fine"), num_queries=100, skipped=bad)
        teacher = RuleTeacher(lambda request, f=(kind, retryable): fail(*f))
        with pytest.raises(TeacherDownError, match=r"80 requests failed .* 80 attempts are"):
            run(folder, teacher, num_queries=100, concurrency=100)
        assert count_rows(folder) == {"done": 120, "failed": 80}
        assert run(folder, teacher, num_queries=100).num_quarantined == 80


def test_a_teacher_that_is_dead_in_the_next_run_hurts_none_but_those_that_failed(tmp_path):
    bad = {f"9:{number}/0" for number in range(1, 40, 4)}
    late = {f"9:{number}/{sample}" for number in range(41, 91) for sample in (0, 1)}
    teacher = RuleTeacher(lambda r: fail("server") if r.key in bad else "fine")
    with pytest.raises(InterruptedError):
        run(tmp_path, teacher, num_queries=90, skipped=late, stops_after_failures=True)
    before = read_newest(tmp_path)
    assert count_rows(tmp_path) == {"done": 70, "failed": 10}
    with pytest.raises(TeacherDownError, match=r"64 requests failed .* no attempts are counted"):
        run(tmp_path, RuleTeacher(lambda request: fail("server")), num_queries=90)
    rows = read_newest(tmp_path)
    assert rows.keys() == before.keys()
    assert {row.attempt for row in rows.values() if row.status == "failed"} == {2}


def test_a_few_that_fail_while_others_are_answered_are_to_blame(tmp_path):
    bad = {f"9:{number}/0" for number in range(30, 41)}
    progress = run(tmp_path, RuleTeacher(lambda r: fail() if r.key in bad else "fine"))
    assert (progress.num_done, progress.num_quarantined) == (69, 11)


@pytest.mark.parametrize(("kind", "num_runs"), [("timeout", 1), ("connection", 2)])
def test_the_last_ones_that_never_succeed_are_given_up_in_the_end(tmp_path, kind, num_runs):
    """Left alone with a teacher that has answered all others, in runs before this one."""
    bad = {"9:3/0", "9:4/1"}
    teacher = RuleTeacher(lambda r: fail(kind) if r.key in bad else "fine")
    if num_runs == 2:
        with pytest.raises(InterruptedError):
            run(tmp_path, teacher, max_attempts=3, stops_after_failures=True)
        assert count_rows(tmp_path) == {"done": 78, "failed": 2}
    else:
        done = RuleTeacher(lambda request: "fine")
        run(tmp_path, done, skipped=bad)
    assert run(tmp_path, teacher).num_quarantined == 2


@pytest.mark.parametrize("kind", ["rejected", "picture", "truncated", "unexpected"])
def test_what_hits_every_request_quarantines_none(tmp_path, kind):
    with pytest.raises(TeacherDownError, match=f"the last one by {kind}: planned"):
        run(tmp_path, RuleTeacher(lambda request: fail(kind, retryable=False)))
    assert read_newest(tmp_path) == {}
    bad = {f"9:{number}/0" for number in range(1, 41)}
    run(tmp_path, RuleTeacher(lambda r: fail(kind, retryable=False) if r.key in bad else "fine"))
    assert count_rows(tmp_path) == {"done": 40, "quarantined": 40}
    assert {row.attempt for row in read_newest(tmp_path).values()} == {1}


def test_no_access_stops_at_once(tmp_path):
    teacher = RuleTeacher(lambda request: fail("access", retryable=False))
    with pytest.raises(TeacherDownError, match="does not let us in: planned"):
        run(tmp_path, teacher)
    assert len(teacher.requests) <= 8
    assert read_newest(tmp_path) == {}


class AllAtOnce(RuleTeacher):
    """Answers so many, when all have asked: the others come before the last one stops a run."""

    def __init__(self, answer, num_requests):
        super().__init__(answer)
        self.num_requests = num_requests
        self.is_full = asyncio.Event()

    async def ask(self, request):
        self.requests.append(request)
        if len(self.requests) == self.num_requests:
            self.is_full.set()
        is_late = len(self.requests) > self.num_requests
        await (asyncio.Event() if is_late else self.is_full).wait()
        return self.reply(request)


def test_replies_after_the_end_of_access_blame_nobody(tmp_path):
    bad = fail("access", retryable=False)
    teacher = AllAtOnce(lambda request: bad if request.key == "9:4/1" else "fine", 8)
    with pytest.raises(TeacherDownError, match="does not let us in"):
        run(tmp_path, teacher)
    assert count_rows(tmp_path) == {"done": 7}


def test_replies_after_the_last_failure_blame_nobody(tmp_path):
    late = [f"9:{number}/{sample}" for number in range(1, 41) for sample in (0, 1)][63:71]
    teacher = AllAtOnce(lambda request: "fine" if request.key in late else fail("server"), 72)
    with pytest.raises(TeacherDownError, match="64 requests failed"):
        run(tmp_path, teacher, num_queries=100, concurrency=72)
    assert count_rows(tmp_path) == {"done": 8}


def test_requests_whose_replies_come_later_are_put_once_and_count_no_attempt(tmp_path):
    def answer(request):
        if request.key == "9:7/0":
            return fail("server")
        return fail("waiting", retryable=False) if request.seed else "fine"

    teacher = RuleTeacher(answer)
    with pytest.raises(TeacherDownError, match="40 requests wait for their replies: planned"):
        run(tmp_path, teacher)
    assert Counter(request.key for request in teacher.requests).most_common(1)[0][1] == 1
    assert count_rows(tmp_path) == {"done": 39, "failed": 1}
    assert run(tmp_path, RuleTeacher(lambda request: "fine")).num_done == 80


@pytest.mark.parametrize("place", ["build", "read", "progress"])
def test_an_error_of_ours_stops_the_run_and_loses_nothing(tmp_path, place):
    """A `ValueError` of the reader is the reply's; any other is a mistake of ours."""

    def break_at(name):
        if name == place:
            raise KeyError(name)

    async def drive(schedule):
        await run_phase(
            schedule,
            RuleTeacher(lambda request: "fine"),
            lambda work: break_at("build") or build_request(work),
            lambda work, reply: break_at("read") or read_reply(work, reply),
            4,
            lambda progress, counts: counts.num_replies and break_at("progress"),
        )

    with Journal(tmp_path) as journal:
        schedule = Schedule(journal.open_phase("generate"), lambda: iterate_inputs(4))
        with pytest.raises(KeyError, match=place):
            asyncio.run(drive(schedule))
    assert count_rows(tmp_path)["failed"] == 0
    assert run(tmp_path, RuleTeacher(lambda request: "fine"), num_queries=4).num_done == 8


def test_a_cancelled_run_gives_back_what_is_in_flight(tmp_path):
    teacher = RuleTeacher(lambda request: "fine")

    async def drive(schedule):
        def on_progress(progress, counts):
            if counts.num_replies == 20:
                task.cancel()

        task = asyncio.ensure_future(
            run_phase(schedule, teacher, build_request, read_reply, 8, on_progress)
        )
        with pytest.raises(asyncio.CancelledError):
            await task

    with Journal(tmp_path) as journal:
        schedule = Schedule(journal.open_phase("generate"), lambda: iterate_inputs(NUM_QUERIES))
        asyncio.run(drive(schedule))
        assert schedule._in_flight == {}
    assert set(count_rows(tmp_path)) == {"done"}
    assert run(tmp_path, RuleTeacher(lambda request: "fine")).num_done == 80


def test_work_without_a_teacher_lets_signals_through(tmp_path):
    def judge(work):
        time.sleep(0.002)
        return Outcome.dropped({"rule": "x"}) if work.sample else Outcome.done({"rule": "y"})

    seen = []

    async def tick():
        while True:
            seen.append(len(counted))
            await asyncio.sleep(0)

    counted = []

    async def drive(schedule):
        ticking = asyncio.ensure_future(tick())
        await run_locally(schedule, judge, lambda progress, counts: counted.append(progress))
        ticking.cancel()

    with Journal(tmp_path) as journal:
        schedule = Schedule(journal.open_phase("generate"), lambda: iterate_inputs(NUM_QUERIES))
        asyncio.run(drive(schedule))
    assert count_rows(tmp_path) == {"done": 40, "dropped": 40}
    assert [p.num_due for p in counted] == list(range(80, -1, -1))
    assert len(seen) >= 2


def test_a_faulty_endpoint_and_one_that_comes_back_give_the_rows_of_a_whole_one(tmp_path):
    pytest.importorskip("openai")
    from tracelib.construction.teachers.endpoint import EndpointTeacher
    from tracelib.construction.teachers.retry import RetryPolicy

    def answer(request):
        return complete(f"{request['messages'][-1]['content']}, seed {request['seed']}")

    async def drive(folder, url, num_queries):
        teacher = EndpointTeacher(
            url, "stub", timeout_seconds=0.2, retry=RetryPolicy(4, base_seconds=0.001)
        )
        with Journal(folder) as journal:
            phase = journal.open_phase("generate")
            schedule = Schedule(phase, lambda: iterate_inputs(num_queries), max_attempts=5)
            await run_phase(
                schedule, teacher, build_request, read_reply, 16, lambda progress, counts: None
            )

    async def compare():
        async with StubEndpoint(answer) as stub:
            await drive(tmp_path / "whole", stub.url, 100)
            gone = stub.url
            async with FaultProxy(stub.port, rate=0.1) as proxy:
                await drive(tmp_path / "faulty", proxy.url, 60)
        with pytest.raises(TeacherDownError):
            await drive(tmp_path / "faulty", gone, 100)
        async with StubEndpoint(answer) as stub:
            await drive(tmp_path / "faulty", stub.url, 100)

    asyncio.run(compare())
    whole, faulty = (
        {key: (row.status, row.result) for key, row in read_newest(tmp_path / name).items()}
        for name in ("whole", "faulty")
    )
    assert len(whole) == 200
    assert faulty == whole


_KILLED = """
import asyncio, sys
from pathlib import Path
from tests.construction.rule_teacher import RuleTeacher
from tests.construction.test_phase_driver import run

class Slow(RuleTeacher):
    async def ask(self, request):
        await asyncio.sleep(0.01)
        return await super().ask(request)

run(Path(sys.argv[1]), Slow(lambda request: request.messages[0]["content"]))
"""


def test_a_killed_run_goes_on_to_the_same_rows(tmp_path):
    def answer(request):
        return request.messages[0]["content"]

    run(tmp_path / "whole", RuleTeacher(answer))
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, killed], cwd=Path(__file__).parents[2]
    )
    journal = killed / "generate.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 20:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    num_rows = journal.read_bytes().count(b"\n")
    assert 20 <= num_rows < 80
    teacher = RuleTeacher(answer)
    run(killed, teacher)
    assert len(teacher.requests) == 80 - num_rows
    assert read_newest(killed) == read_newest(tmp_path / "whole")
