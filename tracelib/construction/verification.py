"""The phase `verify`: every sample that passed the rules, held against the true target by a model.

A row keeps the model's reply. Where the question has not changed, another threshold, another way to
read replies or, for a verifier that never shows the answer, another answer gets its verdict from
the reply that is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.journal_row import JournalRow
from tracelib.construction.journal.progress import Progress
from tracelib.construction.journal.schedule import PhaseInput, Schedule, Work
from tracelib.construction.phase_driver import OnProgress, run_phase
from tracelib.construction.phase_outcome import Outcome
from tracelib.construction.queries import SourceQueries, SourceQuery
from tracelib.construction.rules.tags import parse_rationale_text
from tracelib.construction.teachers.teacher import Reply, Request
from tracelib.construction.verifiers.verifier import Verifier

if TYPE_CHECKING:
    from tracelib.construction.sample_chain import SampleChain

REQUEST_HASH = "request_hash"
"""Field of a result: what the reply depends on."""
IS_REREAD = "is_reread"
"""Field of a result whose reply was there before: nobody was asked, and nothing paid, again."""


@dataclass(frozen=True)
class VerifySettings:
    """Who holds answers against their targets, and how sure it must be.

    Args:
        verifier: The verifier; null leaves the phase out, and takes all that passed the rules.
        min_confidence: Least confidence of a consistent answer that is kept, 0 .. 1 (TRACE 9).
        concurrency: Requests in flight, 1 and above.

    Raises:
        ValueError: A number is out of its range.
    """

    verifier: Verifier | None = None
    min_confidence: float = 0.7
    concurrency: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"verify.min_confidence is {self.min_confidence}; allowed 0 .. 1")
        if self.concurrency < 1:
            raise ValueError(f"verify.concurrency is {self.concurrency}; allowed 1 and above")


class Verification:
    """Asks a verifier about samples, and reads what it says.

    Args:
        verifier: The verifier.
        min_confidence: Least confidence of a consistent answer that is kept.
    """

    def __init__(self, verifier: Verifier, min_confidence: float) -> None:
        self.verifier = verifier
        self._min_confidence = min_confidence
        self._reading = [verifier.describe_reading(), min_confidence]

    def build_request(self, query: SourceQuery, generated: JournalRow) -> Request:
        """Return the question about a sample."""
        reasoning, answer = parse_rationale_text(generated.result["text"])
        key = f"verify-{generated.query_id}-{generated.sample}"
        return self.verifier.build_request(key, query, reasoning, answer)

    def hash_request(self, request: Request) -> str:
        """Return what the reply to a question depends on."""
        sampling = [request.max_tokens, request.temperature, request.seed, request.schema]
        return compute_input_hash([self.verifier.teacher.key, sampling], request.messages)

    def hash_input(self, query: SourceQuery, generated: JournalRow) -> str:
        """Return the input hash of a sample's verdict: question, reading, and the text judged."""
        request_hash = self.hash_request(self.build_request(query, generated))
        return compute_input_hash(
            [request_hash, self._reading], [generated.result["text"], query.target_text]
        )

    def read(self, query: SourceQuery, generated: JournalRow, reply: Reply) -> Outcome:
        """Return what a reply makes of a sample: kept, or dropped.

        Raises:
            ValueError: The reply cannot be read.
        """
        _, answer = parse_rationale_text(generated.result["text"])
        verdict = self.verifier.read_reply(reply, query, answer)
        result = {
            "consistent": verdict.is_consistent,
            "confidence": verdict.confidence,
            "reason": verdict.reason,
            "reply": reply.text,
            "model": reply.model,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "latency_seconds": reply.latency_seconds,
            "finish_reason": reply.finish_reason,
            REQUEST_HASH: self.hash_request(self.build_request(query, generated)),
        }
        is_kept = verdict.is_consistent and verdict.confidence >= self._min_confidence
        return Outcome.done(result) if is_kept else Outcome.dropped(result)


async def run_verify(
    queries: SourceQueries,
    chain: SampleChain,
    concurrency: int,
    on_progress: OnProgress,
    max_attempts: int = 3,
    retry_quarantined: bool = False,
) -> Progress | None:
    """Ask about every sample that passed the rules and has no verdict of its present input.

    Args:
        queries: The queries, in their order.
        chain: Rows of the phases, and who judges.
        concurrency: Requests in flight.
        on_progress: Told after each result.
        max_attempts: Attempts at a sample before it is quarantined.
        retry_quarantined: Whether samples that an earlier run quarantined are asked about again.

    Returns:
        How far the phase is, or None without a verifier.

    Raises:
        TeacherDownError: The verifier's model answers nothing any more.
        JournalError: A row cannot be written.
    """
    verification = chain.verification
    if verification is None:
        return None
    reread_replies(queries, chain, verification)
    schedule = Schedule(
        chain.work.open_phase("verify"),
        lambda: list_verify_inputs(queries, chain, verification),
        max_attempts,
        retry_quarantined,
    )

    def find_sample(work: Work) -> tuple[SourceQuery, JournalRow]:
        query = queries.find(work.query_id)
        generated = chain.read_generated(query, work.sample)
        assert generated is not None  # the input was made of it
        return query, generated

    await run_phase(
        schedule,
        verification.verifier.teacher,
        lambda work: verification.build_request(*find_sample(work)),
        lambda work, reply: verification.read(*find_sample(work), reply),
        concurrency,
        on_progress,
    )
    return schedule.progress


def list_verify_inputs(
    queries: Iterable[SourceQuery], chain: SampleChain, verification: Verification
) -> Iterator[PhaseInput]:
    """Yield the inputs of phase `verify`: a sample each."""
    for query, generated in chain.iterate_filtered(queries):
        input_hash = verification.hash_input(query, generated)
        yield PhaseInput(query.query_id, generated.sample, input_hash)


def reread_replies(
    queries: Iterable[SourceQuery], chain: SampleChain, verification: Verification
) -> int:
    """Give stale samples whose question is the same their verdict from the reply that is there.

    Returns:
        How many.
    """
    journal = chain.work.open_phase("verify")
    num_read = 0
    for query, generated in chain.iterate_filtered(queries):
        row = journal.read_row(query.query_id, generated.sample)
        if row is None or REQUEST_HASH not in row.result:
            continue
        input_hash = verification.hash_input(query, generated)
        request_hash = verification.hash_request(verification.build_request(query, generated))
        if row.input_hash == input_hash or row.result[REQUEST_HASH] != request_hash:
            continue
        try:
            outcome = verification.read(query, generated, _restore_reply(row.result))
        except ValueError:  # by the new reading: to be asked again
            continue
        num_read += 1
        result = {**outcome.result, IS_REREAD: True}
        journal.append([replace(row, status=outcome.status, input_hash=input_hash, result=result)])
    return num_read


def _restore_reply(result: dict[str, Any]) -> Reply:
    return Reply(
        result["reply"],
        result["model"],
        result["prompt_tokens"],
        result["completion_tokens"],
        result["latency_seconds"],
        result["finish_reason"],
    )
