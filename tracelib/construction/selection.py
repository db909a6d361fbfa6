"""Which sample of each query becomes its row, and what became of all the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from tracelib.construction.journal.journal_row import JournalRow, Phase
from tracelib.construction.queries import SourceQuery
from tracelib.construction.rules.duplicates import SeenPairs
from tracelib.construction.rules.tags import has_tags, parse_rationale_text
from tracelib.construction.sample_chain import SampleChain

DropPhase = Phase | Literal["select"]


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a sample, or a whole query, is not in the output: one for each rule that it broke.

    Args:
        query_id: `D:N` of the query.
        dataset: Its data set.
        sample: Which of its samples, or None for the query as a whole.
        phase: Where it fell out; `select` is the choice among what passed all.
        rule: The rule that it broke, in phases `filter`; elsewhere `inconsistent` or
            `low_confidence` (`verify`), `near_duplicate`, `not_chosen` or `unanswered` (`select`),
            or in any phase `quarantined`, `failed` or `pending`, which has no verdict yet.
        detail: What was found and what is allowed, or the error.
        reasoning: The sample's thought, or its whole text where it has no parts; None without one.
        answer: Its answer, or None.
    """

    query_id: str
    dataset: str
    sample: int | None
    phase: DropPhase
    rule: str
    detail: str
    reasoning: str | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Thought:
    """A sample that passed all.

    Args:
        generated: Its row of phase `generate`.
        reasoning: Its thought.
        answer: Its answer.
        confidence: The verifier's, or None without a verifier.
        reasoning_tokens: Tokens of the thought, as the rules count them.
        answer_tokens: Tokens of the answer.
    """

    generated: JournalRow
    reasoning: str
    answer: str
    confidence: float | None
    reasoning_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Selected:
    """A row of the output.

    Args:
        query: The query.
        difficulty: 1 where it needs thought, 0 where not.
        assessor: Who says so.
        thought: What it is to think, or None for nothing.
    """

    query: SourceQuery
    difficulty: int
    assessor: str
    thought: Thought | None


def select_rows(
    queries: Iterable[SourceQuery], chain: SampleChain, has_verifier: bool, min_confidence: float
) -> Iterator[Selected | Drop]:
    """Yield for each query its row and whatever was dropped of it, in the order of the queries.

    A query that is asked for rationales has the sample of the highest confidence, of equals the
    first, that no earlier row is a near-duplicate of. Without any, it has no row if it needs
    thought: it must not be learned as one that does not. Memory is some 100
    bytes a rationale.

    Args:
        queries: The queries, in the order that decides among near-duplicates.
        chain: Rows of the phases.
        has_verifier: Whether samples have to pass phase `verify`.
        min_confidence: Least confidence of a verdict, which names the reason of a drop.
    """
    seen = SeenPairs()
    for query in queries:
        assessed = chain.read_assessed(query)
        if assessed is None or assessed.status != "done":
            yield _drop_undone(query, None, "assess", assessed)
            continue
        difficulty = int(assessed.result["difficulty"])
        thought = None
        if difficulty in chain.difficulties:
            passed: list[Thought] = []
            for sample in range(chain.num_samples):
                found = _judge_sample(query, sample, chain, has_verifier, min_confidence)
                if isinstance(found, Thought):
                    passed.append(found)
                else:
                    yield from found
            thought, drops = _choose(query, passed, seen)
            yield from drops
        if thought is None and difficulty == 1:
            detail = f"none of its {chain.num_samples} samples is left"
            if difficulty not in chain.difficulties:
                detail = (
                    f"difficulty 1 is none of {list(chain.difficulties)} (generate.difficulties)"
                )
            yield Drop(query.query_id, query.dataset, None, "select", "unanswered", detail)
            continue
        yield Selected(query, difficulty, str(assessed.result["by"]), thought)


def _judge_sample(
    query: SourceQuery,
    sample: int,
    chain: SampleChain,
    has_verifier: bool,
    min_confidence: float,
) -> Thought | list[Drop]:
    """Return a sample that passed all, or why it did not."""
    generated = chain.read_generated(query, sample)
    if generated is None or generated.status != "done":
        return [_drop_undone(query, sample, "generate", generated)]
    text = generated.result["text"]
    filtered = chain.read_filtered(query, generated)
    if filtered is None or filtered.status != "done":
        return _drop_filtered(query, sample, filtered, text)
    reasoning, answer = parse_rationale_text(text)
    confidence = None
    if has_verifier:
        verified = chain.read_verified(query, generated)
        if verified is None or verified.status != "done":
            return [_drop_verified(query, sample, verified, min_confidence, reasoning, answer)]
        confidence = float(verified.result["confidence"])
    counts = (filtered.result["reasoning_tokens"], filtered.result["answer_tokens"])
    return Thought(generated, reasoning, answer, confidence, *counts)


def _choose(
    query: SourceQuery, passed: list[Thought], seen: SeenPairs
) -> tuple[Thought | None, list[Drop]]:
    """Return the best sample that is no near-duplicate, and a drop for each other one."""
    chosen: Thought | None = None
    drops = []
    for thought in sorted(passed, key=lambda thought: -(thought.confidence or 0.0)):
        if chosen is not None:
            detail = f"sample {chosen.generated.sample} was taken"
            drops.append(_drop_thought(query, thought, "not_chosen", detail))
        elif twin := seen.add(query.text, query.image_path, thought.answer):
            drops.append(_drop_thought(query, thought, twin.rule, twin.detail))
        else:
            chosen = thought
    return chosen, drops


def _drop_undone(
    query: SourceQuery, sample: int | None, phase: DropPhase, row: JournalRow | None
) -> Drop:
    """Return the drop of what has no result: not yet, or for good."""
    rule, detail = "pending", "there is no row of its present input yet"
    if row is not None:
        rule, detail = row.status, row.error or f"{row.result}"
    return Drop(query.query_id, query.dataset, sample, phase, rule, detail)


def _drop_filtered(
    query: SourceQuery, sample: int, row: JournalRow | None, text: str
) -> list[Drop]:
    if row is None or row.status != "dropped":
        return [_drop_undone(query, sample, "filter", row)]
    details: dict[str, list[str]] = {}
    for violation in row.result["violations"]:
        details.setdefault(violation["rule"], []).append(violation["detail"])
    parts = parse_rationale_text(text) if has_tags(text) else (text, None)
    return [
        Drop(query.query_id, query.dataset, sample, "filter", rule, "; ".join(found), *parts)
        for rule, found in details.items()
    ]


def _drop_verified(
    query: SourceQuery,
    sample: int,
    row: JournalRow | None,
    min_confidence: float,
    reasoning: str,
    answer: str,
) -> Drop:
    if row is None or row.status != "dropped":
        return _drop_undone(query, sample, "verify", row)
    rule, detail = "inconsistent", str(row.result["reason"])
    if row.result["consistent"]:
        rule = "low_confidence"
        detail = f"{row.result['confidence']}, required is {min_confidence}; {detail}"
    return Drop(query.query_id, query.dataset, sample, "verify", rule, detail, reasoning, answer)


def _drop_thought(query: SourceQuery, thought: Thought, rule: str, detail: str) -> Drop:
    return Drop(
        query.query_id,
        query.dataset,
        thought.generated.sample,
        "select",
        rule,
        detail,
        thought.reasoning,
        thought.answer,
    )
