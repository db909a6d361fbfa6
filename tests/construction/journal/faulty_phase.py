"""A phase whose teacher fails by a plan, to be run here or as a process that may be killed."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.journal_row import JournalRow
from tracelib.construction.journal.schedule import PhaseInput, Schedule, Work
from tracelib.construction.journal.work_folder import Journal

NUM_IN_FLIGHT = 16
MAX_ATTEMPTS = 3


def iterate_inputs(num_queries: int, settings: str = "first") -> Iterator[PhaseInput]:
    """Two samples of each query."""
    for number in range(1, num_queries + 1):
        for sample in range(2):
            prompt = f"query {number}, sample {sample}"
            yield PhaseInput(f"9:{number}", sample, compute_input_hash(settings, prompt))


def record_planned(schedule: Schedule, work: Work) -> None:
    """What comes of an attempt depends on the attempt alone: 3 of 10 fail, 1 is dropped."""
    plan = f"{work.query_id} {work.sample} {work.input_hash} {work.attempt}"
    draw = int(sha256(plan.encode()).hexdigest(), 16) % 10
    if draw < 3:
        schedule.record_failed(work, f"planned fault of attempt {work.attempt}")
    elif draw == 3:
        schedule.record_dropped(work, {"reason": plan})
    else:
        schedule.record_done(work, {"text": plan * 3})


def run_phase(
    folder: Path,
    seed: int,
    num_queries: int,
    settings: str = "first",
    max_records: int | None = None,
    seconds: float = 0.0,
) -> int:
    """Run until all is done or `max_records` are written, completing in an order by `seed`."""
    rng, flying, num_records = random.Random(seed), [], 0
    with Journal(folder) as journal:
        phase = journal.open_phase("generate")
        schedule = Schedule(phase, lambda: iterate_inputs(num_queries, settings), MAX_ATTEMPTS)
        while num_records != max_records:
            while len(flying) < NUM_IN_FLIGHT and (work := schedule.take()) is not None:
                flying.append(work)
            if not flying:
                assert schedule.progress.num_due == 0
                break
            record_planned(schedule, flying.pop(rng.randrange(len(flying))))
            num_records += 1
            time.sleep(seconds)
    return num_records


def read_newest(folder: Path) -> dict[tuple[str, int], JournalRow]:
    """The rows that count, and each only once."""
    with Journal(folder) as journal:
        rows = list(journal.open_phase("generate").read_newest())
    found = {(row.query_id, row.sample): row for row in rows}
    assert len(found) == len(rows)
    return found


if __name__ == "__main__":
    run_phase(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), seconds=0.001)
