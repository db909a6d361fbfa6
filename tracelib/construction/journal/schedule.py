"""What a phase has still to do, whatever happened before: missing, stale and failed rows.

All that is known lies in the journal, so a schedule that is killed loses nothing and the next one
goes on. What failed comes again after everything else: a pass over the phase's inputs per attempt,
so that memory does not grow with the number of failures, and a teacher has time to recover.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelib.construction.journal.journal_row import (
    MAX_ATTEMPT,
    STATUSES,
    JournalRow,
    Status,
)
from tracelib.construction.journal.phase_journal import PhaseJournal
from tracelib.construction.journal.progress import (
    DUE_STATES,
    Progress,
    State,
    make_progress,
)
from tracelib.construction.journal.row_key import pack_key, unpack_key


@dataclass(frozen=True)
class PhaseInput:
    """A row that a phase is to have.

    Args:
        query_id: `D:N` of the query.
        sample: Which of its samples, from 0.
        input_hash: What its result depends on, of `compute_input_hash`.
    """

    query_id: str
    sample: int
    input_hash: str


@dataclass(frozen=True)
class Work:
    """One attempt to be made.

    Args:
        query_id: `D:N` of the query.
        sample: Which of its samples, from 0.
        attempt: Which attempt at this input, from 1.
        input_hash: What the result depends on.
        state: Why it is to be done: the row is `missing`, `stale` or `failed`.
    """

    query_id: str
    sample: int
    attempt: int
    input_hash: str
    state: State


class Schedule:
    """Hands out the work of a phase and writes down what comes of it, in any order.

    Take until None comes and nothing is in flight; tell of each work once. The constructor goes
    over all inputs once, to count them.

    Args:
        journal: Journal of the phase.
        list_inputs: Gives the phase's inputs in their order, the same ones at every call.
        max_attempts: Attempts at an input before it is quarantined.
        retry_quarantined: Whether rows that an earlier run quarantined are tried again, with all
            attempts; otherwise only another input frees them.

    Raises:
        ValueError: `max_attempts` is out of its range, or an input comes twice.
    """

    def __init__(
        self,
        journal: PhaseJournal,
        list_inputs: Callable[[], Iterable[PhaseInput]],
        max_attempts: int = 3,
        retry_quarantined: bool = False,
    ) -> None:
        if not 1 <= max_attempts <= MAX_ATTEMPT:
            raise ValueError(f"max_attempts {max_attempts} is not in 1 .. {MAX_ATTEMPT}")
        self._journal, self._list_inputs = journal, list_inputs
        self._max_attempts, self._retry_quarantined = max_attempts, retry_quarantined
        self._start = journal.num_bytes
        self._in_flight: dict[int, Work] = {}
        self._pass: Iterator[PhaseInput] = iter(())
        self._num_passes = 0
        self._counts = self._count_states()

    @property
    def progress(self) -> Progress:
        """How far the phase is; what is in flight counts as it was before."""
        return make_progress(self._counts)

    def take(self) -> Work | None:
        """Return the next work, or None if there is none now.

        With work in flight, None may mean: what fails of it comes again, so ask once more after
        the next result. With none in flight it means: this run is through.
        """
        while True:
            for phase_input in self._pass:
                state, num_attempts = self._classify(phase_input)
                if state in DUE_STATES:
                    return self._start_work(phase_input, state, num_attempts + 1)
            is_over = self._num_passes >= self._max_attempts or not self.progress.num_due
            if self._in_flight or is_over:
                return None
            self._num_passes += 1
            self._pass = iter(self._list_inputs())

    def record_done(self, work: Work, result: dict[str, Any]) -> None:
        """Write down a result.

        Raises:
            ValueError: It is empty, or the work is not in flight, as when it was told of before.
            JournalError: It cannot be written; it is then not counted, and still in flight.
        """
        self._record(work, "done", result, None)

    def record_dropped(self, work: Work, result: dict[str, Any]) -> None:
        """Write down a verdict against a sample, with its reason; raises as `record_done` does."""
        self._record(work, "dropped", result, None)

    def record_failed(
        self, work: Work, error: str, is_final: bool = False, result: dict[str, Any] | None = None
    ) -> None:
        """Write down a failure, which is a quarantine after the last attempt.

        Args:
            work: What failed.
            error: Why.
            is_final: Whether another attempt is of no use.
            result: What is there to show of it, such as the reply that could not be read.

        Raises:
            ValueError: The error is empty, or the work is not in flight.
            JournalError: It cannot be written.
        """
        is_last = is_final or work.attempt >= self._max_attempts
        self._record(work, "quarantined" if is_last else "failed", result or {}, error)

    def release(self, work: Work) -> None:
        """Give work back without an attempt, as when the teacher is gone and the run is to stop.

        Raises:
            ValueError: The work is not in flight.
        """
        del self._in_flight[self._find_key(work)]

    def _record(
        self, work: Work, status: Status, result: dict[str, Any], error: str | None
    ) -> None:
        key = self._find_key(work)
        phase = self._journal.phase
        row = JournalRow(
            work.query_id, phase, work.sample, status, work.input_hash, work.attempt, result, error
        )
        self._journal.append([row])
        del self._in_flight[key]
        self._counts[work.state] -= 1
        self._counts[status] += 1

    def _start_work(self, phase_input: PhaseInput, state: State, attempt: int) -> Work:
        query_id, sample = phase_input.query_id, phase_input.sample
        work = Work(query_id, sample, min(attempt, MAX_ATTEMPT), phase_input.input_hash, state)
        self._in_flight[pack_key(query_id, sample)] = work
        return work

    def _find_key(self, work: Work) -> int:
        key = pack_key(work.query_id, work.sample)
        if self._in_flight.get(key) is not work:
            raise ValueError(
                f"query {work.query_id}, sample {work.sample} is not in flight: it was never "
                "taken, or its end was told before"
            )
        return key

    def _classify(self, phase_input: PhaseInput) -> tuple[State, int]:
        """Return the state of a row, and the number of attempts that count."""
        entry = self._journal.find_entry(phase_input.query_id, phase_input.sample)
        if entry is None:
            return "missing", 0
        if entry.input_hash != int(phase_input.input_hash, 16):
            return "stale", 0
        status = STATUSES[entry.status]
        if status == "quarantined" and self._retry_quarantined and entry.offset < self._start:
            return "failed", 0
        return status, entry.attempt

    def _count_states(self) -> Counter[State]:
        counts: Counter[State] = Counter()
        keys = array("q")
        for phase_input in self._list_inputs():
            counts[self._classify(phase_input)[0]] += 1
            keys.append(pack_key(phase_input.query_id, phase_input.sample))
        ordered = np.sort(np.frombuffer(keys, np.int64)) if keys else np.empty(0, np.int64)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            query_id, sample = unpack_key(int(twice[0]))
            raise ValueError(
                f"query {query_id}, sample {sample} comes twice among the inputs of phase "
                f"{self._journal.phase}; {len(twice)} do"
            )
        return counts
