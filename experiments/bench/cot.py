"""Measures how fast rationale construction keeps a teacher busy, and whether its memory grows.

python experiments/bench/cot.py [--latency_seconds 0.1] [--num_rows 100000]

A stub of fixed latency answers from a process of its own. Rows go the whole way: schedule, driver,
endpoint client, reply, journal on disk.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jsonargparse import auto_cli
from report import Row, make_row, print_rows, write_rows

from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.progress import Progress
from tracelib.construction.journal.schedule import PhaseInput, Schedule, Work
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.phase_driver import run_phase
from tracelib.construction.phase_outcome import Counts, Outcome
from tracelib.construction.teachers.budget import RateLimits
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.teacher import Reply, Request

_BENCH = "cot"
_LIMITS = {"throughput_fraction": ">= 0.9", "memory_growth_mb": "<= 10"}
_OTHER_LATENCIES = (0.05, 0.2)
_WARM_UP_ROWS = 640
_FIRST_READING = 10_000
_PROMPT = "Describe the picture that the instruction asks for, in a sentence. " * 10
_STUB = Path(__file__).parents[2] / "tests" / "construction" / "teachers" / "stub_endpoint.py"
_Result = TypeVar("_Result")


def bench_cot(
    latency_seconds: float = 0.1,
    concurrency: int = 64,
    num_seconds: float = 15.0,
    num_rows: int = 100_000,
    stub: Path = _STUB,
) -> list[Row]:
    """Measure, print the rows and write them to cot.json.

    Args:
        latency_seconds: Latency of the endpoint whose throughput has a limit.
        concurrency: Requests in flight.
        num_seconds: How long each throughput run would take at full speed.
        num_rows: Rows over which memory is watched, above 10,000.
        stub: Script that serves the endpoint.
    """
    options = dict(locals())
    values = {}
    for latency in (latency_seconds, *_OTHER_LATENCIES):
        rows = round(num_seconds * concurrency / latency) + _WARM_UP_ROWS
        found = _run_apart(measure_throughput, Plan(stub, latency, concurrency, rows))
        suffix = "" if latency == latency_seconds else f"_at_{latency * 1000:g}_ms"
        values |= {f"{name}{suffix}": value for name, value in found.items()}
    values |= _run_apart(measure_memory, Plan(stub, 0.0, concurrency, num_rows))
    rows = [make_row(_BENCH, name, value, _LIMITS.get(name, "")) for name, value in values.items()]
    print_rows(rows)
    write_rows(_BENCH, rows, options)
    return rows


@dataclass(frozen=True)
class Plan:
    """A phase to be run.

    Args:
        stub: Script that serves the endpoint.
        latency_seconds: Latency of the endpoint.
        concurrency: Requests in flight.
        num_rows: Rows of the phase.
    """

    stub: Path
    latency_seconds: float
    concurrency: int
    num_rows: int


def measure_throughput(plan: Plan) -> dict[str, float]:
    """Return rows per second after a warm-up, as a share of concurrency by latency, and CPU."""
    readings: list[tuple[float, float]] = []

    def read(num_done: int) -> None:
        if num_done in (_WARM_UP_ROWS, plan.num_rows - plan.concurrency):
            readings.append((time.perf_counter(), time.process_time()))

    run_plan(plan, read)
    (start, start_cpu), (end, end_cpu) = readings
    num_rows = plan.num_rows - plan.concurrency - _WARM_UP_ROWS
    full_rate = plan.concurrency / plan.latency_seconds
    return {
        "throughput_fraction": num_rows / (end - start) / full_rate,
        "cpu_us_per_row": (end_cpu - start_cpu) / num_rows * 1e6,
    }


def measure_memory(plan: Plan) -> dict[str, float]:
    """Return how much memory of its own the process gains after its first 10,000 rows."""
    readings: dict[int, float] = {}
    start = time.perf_counter()

    def read(num_done: int) -> None:
        if num_done % _FIRST_READING == 0 or num_done == plan.num_rows:
            readings[num_done] = read_own_megabytes()

    run_plan(plan, read)
    return {
        "memory_growth_mb": max(readings.values()) - readings[_FIRST_READING],
        "memory_mb": readings[plan.num_rows],
        "rows_per_second_without_latency": plan.num_rows / (time.perf_counter() - start),
    }


def run_plan(plan: Plan, on_row: Callable[[int], None]) -> None:
    """Run a phase to its end, every row by one request; `on_row` is told the rows done."""

    def list_inputs() -> Iterator[PhaseInput]:
        for number in range(1, plan.num_rows + 1):
            yield PhaseInput(f"9:{number}", 0, compute_input_hash("bench", number))

    def build_request(work: Work) -> Request:
        messages = [
            {"role": "system", "content": _PROMPT},
            {"role": "user", "content": f"query {work.query_id}"},
        ]
        return Request(f"{work.query_id}/0", messages, 256, 0.7, work.attempt)

    def read_reply(work: Work, reply: Reply) -> Outcome:
        return Outcome.done({"text": reply.text, "model": reply.model})

    def on_progress(progress: Progress, counts: Counts) -> None:
        on_row(progress.num_done)

    with serve(plan) as url, tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as work:
        limits = RateLimits(plan.concurrency)
        teacher = EndpointTeacher(url, "stub", limits=limits)
        schedule = Schedule(work.open_phase("generate"), list_inputs)
        asyncio.run(
            run_phase(schedule, teacher, build_request, read_reply, plan.concurrency, on_progress)
        )
        assert schedule.progress.num_done == plan.num_rows


@contextmanager
def serve(plan: Plan) -> Iterator[str]:
    """Serve the endpoint from a process of its own; give its address."""
    command = [sys.executable, str(plan.stub), str(plan.latency_seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as server:  # type: ignore[call-overload]
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        server.stdin.close()


def read_own_megabytes() -> float:
    """Return the memory of this process but for mapped files."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _run_apart(measure: Callable[[Plan], _Result], plan: Plan) -> _Result:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measure, plan).result()


if __name__ == "__main__":
    auto_cli(bench_cot)
