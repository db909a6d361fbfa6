"""Gathers what there is to show of the examples that a survey picked."""

from __future__ import annotations

from tracelib.construction.journal.journal_row import JournalRow
from tracelib.construction.journal.row_key import pack_key
from tracelib.construction.queries import SourceQuery
from tracelib.construction.report.sample import (
    Judgement,
    Reason,
    Sample,
    Side,
    Verdict,
    Writing,
)
from tracelib.construction.report.survey import Pick, Survey
from tracelib.construction.rules.tags import has_tags, parse_rationale_text
from tracelib.construction.sample_chain import SampleChain
from tracelib.construction.selection import Drop

_OWN_VERDICTS: dict[str, Verdict] = {"quarantined": "quarantined", "unanswered": "unanswered"}


def gather_samples(survey: Survey) -> dict[str, list[Sample]]:
    """Return the picked examples of each group, by query; none comes twice."""
    seen: set[tuple[str, int | None]] = set()
    groups = {}
    for name, picks in survey.picks.items():
        fresh = {_find_place(pick): pick for pick in picks if _find_place(pick) not in seen}
        seen.update(fresh)
        order = sorted(fresh, key=lambda place: pack_key(place[0], place[1] or 0))
        groups[name] = [_gather_sample(survey, fresh[place], *place) for place in order]
    return groups


def _find_place(pick: Pick) -> tuple[str, int | None]:
    """Return the query and the sample of an example; None stands for the query as a whole."""
    if isinstance(pick, Drop):
        return pick.query_id, pick.sample
    return pick.query.query_id, pick.thought.generated.sample if pick.thought else None


def _gather_sample(survey: Survey, pick: Pick, query_id: str, number: int | None) -> Sample:
    query, chain = survey.queries.find(query_id), survey.chain
    generated = None if number is None else chain.read_generated(query, number)
    verdict: Verdict = "kept" if number is not None else "direct"
    reasons: tuple[Reason, ...] = ()
    if isinstance(pick, Drop):
        verdict = _OWN_VERDICTS.get(pick.rule, "dropped")
        reasons = _list_reasons(chain, query, pick, generated)
    return Sample(
        verdict,
        query.dataset,
        query.task_id,
        number or 0,
        query.instruction,
        Side(query.query_id, query.text, query.image_path),
        Side(query.target_id, query.target_text, query.target_image_path),
        _describe_difficulty(chain, query),
        _read_writing(chain, query, generated),
        _read_judgement(chain, query, generated),
        reasons,
    )


def _list_reasons(
    chain: SampleChain, query: SourceQuery, drop: Drop, generated: JournalRow | None
) -> tuple[Reason, ...]:
    """Return why a sample was dropped, every broken rule of it and not this drop's alone."""
    if drop.phase == "filter" and drop.rule != "quarantined" and generated is not None:
        filtered = chain.read_filtered(query, generated)
        if filtered is not None and filtered.result.get("violations"):
            return tuple(Reason(**found) for found in filtered.result["violations"])
    return (Reason(drop.rule, drop.detail),)


def _describe_difficulty(chain: SampleChain, query: SourceQuery) -> str:
    row = chain.read_assessed(query)
    if row is None or row.status != "done":
        return "not assessed"
    word = "hard" if row.result["difficulty"] else "easy"
    reason = str(row.result.get("reason", "")).strip()
    return f"{word}, by {row.result['by']}{': ' if reason else ''}{reason}"


def _read_writing(
    chain: SampleChain, query: SourceQuery, generated: JournalRow | None
) -> Writing | None:
    """Return what is there of a sample's text, also of one whose reply could not be used."""
    if generated is None:
        return None
    result = generated.result
    text = result.get("text") or result.get("raw")
    if not text:
        return None
    filtered = chain.read_filtered(query, generated) if generated.status == "done" else None
    lengths = filtered.result if filtered is not None else {}
    reasoning, answer = parse_rationale_text(text) if has_tags(text) else (None, None)
    return Writing(
        text,
        reasoning,
        answer,
        str(result.get("model", "unnamed")),
        str(result.get("template", "unnamed")),
        str(result.get("source", "teacher")),
        lengths.get("reasoning_tokens"),
        lengths.get("answer_tokens"),
    )


def _read_judgement(
    chain: SampleChain, query: SourceQuery, generated: JournalRow | None
) -> Judgement | None:
    if generated is None or generated.status != "done":
        return None
    row = chain.read_verified(query, generated)
    if row is None or row.status not in ("done", "dropped"):
        return None
    result = row.result
    return Judgement(
        bool(result["consistent"]), float(result["confidence"]), str(result.get("reason", ""))
    )
