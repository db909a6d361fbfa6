"""The phase `filter`: every sample that a teacher wrote, held against the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from tracelib.assets import resolve_backbone
from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.journal_row import JournalRow
from tracelib.construction.journal.progress import Progress
from tracelib.construction.journal.schedule import PhaseInput, Schedule, Work
from tracelib.construction.phase_driver import OnProgress, run_locally
from tracelib.construction.phase_outcome import Outcome
from tracelib.construction.queries import SourceQueries, SourceQuery
from tracelib.construction.rules.rationale_check import Facts, RuleLimits, check_rationale
from tracelib.construction.rules.tags import has_tags, parse_rationale_text
from tracelib.construction.templates import TemplateSet

if TYPE_CHECKING:
    from tracelib.construction.sample_chain import SampleChain

COUNT_WORDS = "words"
"""The tokenizer that counts words."""
_VERSION = 1
"""Raised whenever the same limits would give another verdict."""


@dataclass(frozen=True)
class FilterSettings:
    """What the rules count by; their thresholds are `RuleLimits`.

    Args:
        tokenizer: The teacher's tokenizer: a folder or hub name, `embedded`, or `words` to count
            words.
    """

    tokenizer: str = COUNT_WORDS


def load_token_counter(tokenizer: str) -> Callable[[str], int]:
    """Return what counts the tokens of a text, without those that only mark its ends.

    Args:
        tokenizer: As `FilterSettings` has it.

    Raises:
        ValueError: There is no such tokenizer.

    >>> load_token_counter("words")("a red star")
    3
    """
    if tokenizer == COUNT_WORDS:
        return lambda text: len(text.split())
    path = Path(resolve_backbone(tokenizer)) / "tokenizer.json"
    is_here = path.exists()
    try:
        loaded = Tokenizer.from_file(str(path)) if is_here else Tokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the library raises this very class
        raise ValueError(
            f"tokenizer {tokenizer!r} is no folder with a tokenizer.json, and cannot be had from "
            f"the hub: {error}; {COUNT_WORDS!r} counts words (filter.tokenizer)"
        ) from error
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


class RuleFilter:
    """Judges samples by the rules.

    Args:
        limits: Thresholds of the rules.
        settings: What they count by.
        templates: Templates that the samples were asked for with, whose words must not come back.

    Raises:
        ValueError: There is no such tokenizer.
    """

    def __init__(
        self, limits: RuleLimits, settings: FilterSettings, templates: TemplateSet
    ) -> None:
        self._limits, self._templates = limits, templates
        self._count_tokens = load_token_counter(settings.tokenizer)
        self._settings = compute_input_hash([_VERSION, asdict(limits), asdict(settings)], "")

    def hash_input(self, query: SourceQuery, generated: JournalRow) -> str:
        """Return the input hash of a sample's verdict."""
        facts = asdict(self._gather_facts(query, generated))
        return compute_input_hash(self._settings, facts, [generated])

    def judge(self, query: SourceQuery, generated: JournalRow) -> dict[str, Any]:
        """Return the result of a sample: its violations, none for one that passes, and lengths."""
        text = generated.result["text"]
        facts = self._gather_facts(query, generated)
        violations = check_rationale(text, facts, self._limits, self._count_tokens)
        parts = parse_rationale_text(text) if has_tags(text) else None
        reasoning_tokens, answer_tokens = map(self._count_tokens, parts) if parts else (None, None)
        return {
            "violations": [asdict(violation) for violation in violations],
            "reasoning_tokens": reasoning_tokens,
            "answer_tokens": answer_tokens,
        }

    def _gather_facts(self, query: SourceQuery, generated: JournalRow) -> Facts:
        template = self._templates.choose(query)
        return Facts(
            query_text=query.text,
            instruction=query.instruction,
            source_caption=query.source_caption,
            target_text=query.target_text or None,
            target_id=query.target_id,
            source=generated.result["source"],
            task_id=query.task_id,
            prompt=f"{template.system}\n{template.user}",
        )


async def run_filter(
    queries: SourceQueries, chain: SampleChain, on_progress: OnProgress
) -> Progress:
    """Judge every sample that has no verdict of its present text and limits.

    Args:
        queries: The queries, in their order.
        chain: Rows of the phases, and the judge.
        on_progress: Told after each verdict.

    Returns:
        How far the phase is.

    Raises:
        JournalError: A row cannot be written.
    """
    schedule = Schedule(
        chain.work.open_phase("filter"),
        lambda: list_filter_inputs(queries, chain),
        max_attempts=1,
    )

    def judge(work: Work) -> Outcome:
        query = queries.find(work.query_id)
        generated = chain.read_generated(query, work.sample)
        assert generated is not None  # the input was made of it
        result = chain.rules.judge(query, generated)
        return Outcome.dropped(result) if result["violations"] else Outcome.done(result)

    await run_locally(schedule, judge, on_progress)
    return schedule.progress


def list_filter_inputs(queries: Iterable[SourceQuery], chain: SampleChain) -> Iterator[PhaseInput]:
    """Yield the inputs of phase `filter`: a sample each."""
    for query, generated in chain.iterate_generated(queries):
        input_hash = chain.rules.hash_input(query, generated)
        yield PhaseInput(query.query_id, generated.sample, input_hash)
