"""The phase `generate`: a teacher writes the rationales of the queries that need thought."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracelib.construction.assess import AssessSettings, find_difficulty
from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.row_key import MAX_SAMPLE
from tracelib.construction.journal.schedule import PhaseInput, Schedule, Work
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.phase_driver import OnProgress, Outcome, run_phase
from tracelib.construction.queries import SourceQueries, SourceQuery
from tracelib.construction.teachers.teacher import Reply, Request, Teacher
from tracelib.construction.templates import PromptTemplate, load_templates

_LATER_SLOTS = ("answer", "reasoning")


@dataclass(frozen=True)
class GenerateSettings:
    """How rationales are written.

    Args:
        teacher: Who writes them.
        templates: Folder of the prompts; theirs is whether the teacher sees the target.
        num_samples: Rationales per query, 1 and above; the best that passes is kept.
        temperature: Divides the logits, 0 and above; several samples need more than 0.
        seed: What the seeds of all samples' drawings are derived from.
        max_tokens: Longest reply, 1 and above, where the template sets none.
        concurrency: Requests in flight, 1 and above.
        difficulties: Difficulties of the queries that are written for.

    Raises:
        ValueError: A number is out of its range.
    """

    teacher: Teacher
    templates: Path
    num_samples: int = 1
    temperature: float = 0.7
    seed: int = 0
    max_tokens: int = 512
    concurrency: int = 64
    difficulties: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_tokens", "concurrency"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"generate.{name} is {number}; allowed 1 and above")
        if self.num_samples > MAX_SAMPLE + 1:
            raise ValueError(
                f"generate.num_samples is {self.num_samples}; allowed up to {MAX_SAMPLE + 1}"
            )
        if not self.temperature >= 0 or (self.num_samples > 1 and self.temperature == 0):
            raise ValueError(
                f"generate.temperature is {self.temperature}, generate.num_samples "
                f"{self.num_samples}; allowed is 0 and above, with several samples above 0, as "
                "they would be the same"
            )
        if not self.difficulties or set(self.difficulties) - {0, 1}:
            raise ValueError(
                f"generate.difficulties is {self.difficulties}; allowed are 0, 1 or both"
            )


class GeneratePhase:
    """What the phase asks, and what it depends on.

    Args:
        settings: How rationales are written.
        assess: Who decides which queries need one.

    Attributes:
        settings: As given.
        templates: The prompts.

    Raises:
        ValueError: A template is broken, or has a slot that only later phases can fill.
    """

    def __init__(self, settings: GenerateSettings, assess: AssessSettings) -> None:
        self.settings, self._assess = settings, assess
        self.templates = load_templates(settings.templates)
        for template in self.templates.templates:
            if later := [slot for slot in template.slots if slot in _LATER_SLOTS]:
                raise ValueError(
                    f"{settings.templates}: template {template.name!r} has the slot "
                    f"{{{later[0]}}}, which is not written yet (generate.templates)"
                )
        self._sampling = compute_input_hash(
            [settings.teacher.key, settings.temperature, settings.seed], "generate"
        )

    def list_inputs(self, queries: SourceQueries, work: Journal) -> Iterator[PhaseInput]:
        """Yield the inputs: each sample of each query of a difficulty that is written for."""
        for query in queries:
            if find_difficulty(self._assess, query, work) not in self.settings.difficulties:
                continue
            for sample in range(self.settings.num_samples):
                yield PhaseInput(query.query_id, sample, self.hash_input(query, sample))

    def hash_input(self, query: SourceQuery, sample: int) -> str:
        """Return the input hash of a sample: of teacher, template, sampling and prompt.

        The verdict on the query's difficulty decides only whether there is an input: another
        reason for the same verdict makes no rationale stale.
        """
        template = self.templates.choose(query)
        return compute_input_hash(
            [self._sampling, sample, self._limit(template), template.sha],
            template.build_messages(query),
        )

    def build_request(self, query: SourceQuery, sample: int) -> Request:
        """Return the request of a sample."""
        template = self.templates.choose(query)
        return Request(
            f"generate/{query.query_id}/{sample}",
            template.build_messages(query),
            self._limit(template),
            self.settings.temperature,
            zlib.crc32(f"{self.settings.seed} {query.query_id} {sample}".encode()) >> 1,
        )

    def read_reply(self, query: SourceQuery, reply: Reply) -> Outcome:
        """Return the outcome of a reply: done, as the rules judge it in the next phase."""
        template = self.templates.choose(query)
        text = template.canonicalize(reply.text)
        result: dict[str, Any] = {
            "text": text,
            "source": template.source,
            "template": template.name,
            "prompt_hash": compute_input_hash(template.sha, template.build_messages(query)),
            "model": reply.model,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "latency_seconds": round(reply.latency_seconds, 4),
            "finish_reason": reply.finish_reason,
        }
        if text != reply.text:
            result["raw"] = reply.text
        return Outcome.done(result)

    def _limit(self, template: PromptTemplate) -> int:
        return template.max_tokens or self.settings.max_tokens


async def run_generate(
    phase: GeneratePhase,
    queries: SourceQueries,
    work: Journal,
    on_progress: OnProgress,
    max_attempts: int = 3,
    retry_quarantined: bool = False,
) -> None:
    """Write every rationale that is missing, was made from another input, or failed.

    Args:
        phase: What is asked.
        queries: The queries.
        work: The work folder.
        on_progress: Told after each reply.
        max_attempts: Attempts at a sample before it is quarantined.
        retry_quarantined: Whether quarantined rows are tried again.

    Raises:
        TeacherDownError: The teacher answers nothing any more.
        JournalError: A row cannot be written.
        ValueError: A query has no template.
    """
    schedule = Schedule(
        work.open_phase("generate"),
        lambda: phase.list_inputs(queries, work),
        max_attempts,
        retry_quarantined,
    )

    def build_request(work: Work) -> Request:
        return phase.build_request(queries.find(work.query_id), work.sample)

    def read_reply(work: Work, reply: Reply) -> Outcome:
        return phase.read_reply(queries.find(work.query_id), reply)

    settings = phase.settings
    await run_phase(
        schedule, settings.teacher, build_request, read_reply, settings.concurrency, on_progress
    )
