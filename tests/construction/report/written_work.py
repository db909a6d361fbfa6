"""A work folder with every kind of row, written through the real journals."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tests.construction.rule_teacher import RuleTeacher
from tracelib.construction.assess import AssessSettings, RuleAssessor, number_assessor
from tracelib.construction.generate import GenerateSettings
from tracelib.construction.journal.journal_row import JournalRow, Phase, Status
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.queries import QuerySettings, SourceQueries, SourceQuery
from tracelib.construction.recipe import ConstructionRecipe
from tracelib.construction.sample_chain import SampleChain, build_chain
from tracelib.construction.verification import VerifySettings
from tracelib.construction.verifiers.judge import JudgeVerifier

HASH = "0123456789abcdef"
EVIL = '</p><script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" \x00'
DETAIL = "the answer has 1 token, allowed are 2 .. 64"
ERROR = "the request timed out after 120 s"
MODEL, JUDGE = "stub-writer", "stub-judge"


def make_row(
    query_id: str,
    phase: Phase,
    sample: int,
    status: Status,
    result: dict[str, Any],
    error: str | None = None,
    attempt: int = 1,
    input_hash: str = HASH,
) -> JournalRow:
    return JournalRow(query_id, phase, sample, status, input_hash, attempt, result, error)


@cache
def chain_of(work: Journal) -> SampleChain:
    return build_chain(make_recipe(Path(), work.folder), work)


def read_generated(work: Journal, query: SourceQuery, sample: int) -> JournalRow:
    generated = chain_of(work).read_generated(query, sample)
    assert generated is not None
    return generated


def write_assessed(work: Journal, query: SourceQuery, name: str, difficulty: int) -> None:
    result = {"difficulty": difficulty, "reason": "It has edits.", "by": name}
    input_hash = chain_of(work).assess.hash_input(name, query)
    row = make_row(
        query.query_id, "assess", number_assessor(name), "done", result, input_hash=input_hash
    )
    work.open_phase("assess").append([row])


def make_text(query: SourceQuery, sample: int) -> str:
    words = "The edits are applied one after the other, starting from the card as it is shown."
    return f"<reasoning>{words}</reasoning><answer>card {query.query_id} {sample}</answer>"


def write_generated(work: Journal, query: SourceQuery, sample: int, text: str) -> None:
    result = {
        "text": text,
        "source": "teacher",
        "template": "edit",
        "prompt_hash": "0" * 64,
        "model": MODEL,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "latency_seconds": 0.5,
        "finish_reason": "stop",
    }
    input_hash = chain_of(work).generate.hash_input(query, sample)
    row = make_row(query.query_id, "generate", sample, "done", result, input_hash=input_hash)
    work.open_phase("generate").append([row])


def write_filtered(
    work: Journal, query: SourceQuery, sample: int, rules: tuple[str, ...] = ()
) -> None:
    result = {
        "violations": [{"rule": rule, "detail": DETAIL} for rule in rules],
        "reasoning_tokens": None if "missing_tag" in rules else 40 + sample,
        "answer_tokens": None if "missing_tag" in rules else 3,
    }
    status: Status = "dropped" if rules else "done"
    input_hash = chain_of(work).rules.hash_input(query, read_generated(work, query, sample))
    row = make_row(query.query_id, "filter", sample, status, result, input_hash=input_hash)
    work.open_phase("filter").append([row])


def write_verified(
    work: Journal, query: SourceQuery, sample: int, consistent: bool, confidence: float
) -> None:
    result = {
        "consistent": consistent,
        "confidence": confidence,
        "reason": "The card shows what the answer says.",
        "model": JUDGE,
        "prompt_tokens": 50,
        "completion_tokens": 10,
        "latency_seconds": 0.25,
    }
    status: Status = "done" if consistent and confidence >= 0.7 else "dropped"
    verification = chain_of(work).verification
    assert verification is not None
    input_hash = verification.hash_input(query, read_generated(work, query, sample))
    row = make_row(query.query_id, "verify", sample, status, result, input_hash=input_hash)
    work.open_phase("verify").append([row])


def write_work(folder: Path, queries: SourceQueries) -> Journal:
    """Return an open work folder over the queries, in turns of ten hard ones by their fate.

    Sample 0 and 1 of a hard query: 0 both kept, one chosen; 1 broken rules; 2 tags that cannot be
    read; 3 inconsistent; 4 unsure; 5 given up; 6 failed once; 7 not there yet; 8 hostile; 9 the
    same answer for all.
    """
    work = Journal(folder)
    turn = 0
    for query in queries:
        hard = int(query.task_id in (1, 6, 7, 8))
        judged = hard if query.query_id[-1] != "5" else 1 - hard
        for name, difficulty in (("rule", hard), ("judge", judged)):
            write_assessed(work, query, name, difficulty)
        if hard:
            for sample in (0, 1):
                write_sample(work, query, sample, turn % 10)
            turn += 1
    work.sync()
    return work


def write_sample(work: Journal, query: SourceQuery, sample: int, fate: int) -> None:
    text = make_text(query, sample)
    if fate == 2:
        text = "<reasoning>The card is turned and"
    if fate == 8:
        text = f"<reasoning>{EVIL}</reasoning><answer>{EVIL}{query.query_id}</answer>"
    if fate == 9:
        text = f"<reasoning>{query.query_id}</reasoning><answer>the very same card</answer>"
    if fate in (5, 6):
        error = ERROR if fate == 5 else f"{EVIL} {query.query_id}"
        status: Status = "quarantined" if fate == 5 else "failed"
        input_hash = chain_of(work).generate.hash_input(query, sample)
        row = make_row(query.query_id, "generate", sample, status, {}, error, 3, input_hash)
        work.open_phase("generate").append([row])
        return
    if fate == 7:
        return
    write_generated(work, query, sample, text)
    rules = {1: ("answer_tokens", "repeated_ngrams"), 2: ("missing_tag",)}.get(fate, ())
    write_filtered(work, query, sample, rules)
    if not rules:
        consistent, confidence = {3: (False, 0.9), 4: (True, 0.6)}.get(fate, (True, 0.75))
        write_verified(work, query, sample, consistent, confidence)


def make_recipe(root: Path, work: Path, **changes: Any) -> ConstructionRecipe:
    """Return the recipe of such a work folder; whom it names is never asked."""
    folders = {}
    prompts = {"write": "user: '{query}'\n", "judge": "user: '{target} {answer}'\nsource: oracle\n"}
    for name, prompt in prompts.items():
        folders[name] = work.parent / name
        folders[name].mkdir(exist_ok=True)
        (folders[name] / "edit.yaml").write_text(prompt)
    rule = RuleAssessor(hard_query_pattern=":")
    settings: dict[str, Any] = {
        "data": QuerySettings(root),
        "work": work,
        "assess": AssessSettings({"rule": rule, "judge": rule}, "rule"),
        "generate": GenerateSettings(RuleTeacher(), folders["write"], num_samples=2),
        "verify": VerifySettings(JudgeVerifier(RuleTeacher(), folders["judge"])),
    }
    return ConstructionRecipe(**{**settings, **changes})
