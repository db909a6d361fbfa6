import asyncio

import pytest
from transformers import AutoTokenizer

from tests.construction.sample_rows import (
    Queries,
    append_assessed,
    append_generated,
    chain_of,
    good_text,
    make_query,
    templates,
)
from tracelib.construction.filtering import (
    FilterSettings,
    RuleFilter,
    load_token_counter,
    run_filter,
)
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.rules.rationale_check import RuleLimits

WORDS, LIMITS = FilterSettings(), RuleLimits()


def judge_all(work, queries, limits=LIMITS, settings=WORDS, prompts=None, num_samples=2):
    seen = []
    rules = RuleFilter(limits, settings, prompts or templates())
    chain = chain_of(work, num_samples, rules=rules)
    run = run_filter(queries, chain, lambda progress, counts: seen.append(progress.num_due))
    progress = asyncio.run(run)
    journal = work.open_phase("filter")
    rows = {(row.query_id, row.sample): row for row in journal.read_newest()}
    return progress, rows, len(seen) - 1  # the first is told at the start


@pytest.fixture
def work(tmp_path):
    with Journal(tmp_path / "work", sync_seconds=60) as work:
        yield work


@pytest.fixture
def queries(work):
    queries = Queries([make_query(1), make_query(2), make_query(3)])
    for query, difficulty in zip(queries, (1, 1, 0), strict=True):
        append_assessed(work, query.query_id, difficulty)
        append_generated(work, query.query_id, 0, good_text())
    append_generated(work, "8:1", 1, good_text(answer="dog"))
    return queries


def test_each_sample_of_an_asked_query_gets_a_verdict(work, queries):
    progress, rows, num_told = judge_all(work, queries)
    assert list(rows) == [("8:1", 0), ("8:1", 1), ("8:2", 0)]  # 8:3 is easy
    assert (progress.num_done, progress.num_dropped, progress.num_due, num_told) == (2, 1, 0, 3)
    kept, dropped = rows["8:1", 0], rows["8:1", 1]
    assert (kept.status, dropped.status) == ("done", "dropped")
    assert kept.result == {
        "violations": [],
        "reasoning_tokens": 22,
        "answer_tokens": 6,
    }
    assert dropped.result["violations"] == [
        {"rule": "answer_tokens", "detail": "1 tokens, allowed are 2 .. 64"}
    ]


def test_only_what_changed_is_judged_again(work, queries):
    judge_all(work, queries)
    assert judge_all(work, queries)[2] == 0
    append_generated(work, "8:2", 0, "I cannot help with that.")
    _, rows, num_told = judge_all(work, queries)
    assert num_told == 1
    rules = {violation["rule"] for violation in rows["8:2", 0].result["violations"]}
    assert rules == {"missing_tag", "refusal"}
    assert rows["8:2", 0].result["reasoning_tokens"] is None
    _, rows, num_told = judge_all(work, queries, RuleLimits(min_answer_tokens=1))
    assert num_told == 3
    assert rows["8:1", 1].status == "done"


def test_a_row_that_is_not_of_the_present_text_does_not_count(work, queries):
    chain = chain_of(work, 2, rules=RuleFilter(LIMITS, WORDS, templates()))
    query, _, _ = queries
    judge_all(work, queries)
    generated = chain.read_generated(query, 0)
    assert chain.read_filtered(query, generated).status == "done"
    assert [g.sample for _, g in chain.iterate_filtered(queries)] == [0, 0]
    append_generated(work, "8:1", 0, good_text(answer="A red dog in the snow."))
    assert chain.read_filtered(query, chain.read_generated(query, 0)) is None
    assert [g.query_id for _, g in chain.iterate_filtered(queries)] == ["8:2"]


@pytest.mark.parametrize(
    "changed",
    [
        (RuleLimits(max_answer_tokens=63), WORDS, templates()),
        (LIMITS, FilterSettings("embedded"), templates()),
        (LIMITS, WORDS, templates(system="Think.")),
    ],
)
def test_a_verdict_by_other_rules_does_not_count(work, queries, changed):
    judge_all(work, queries)
    chain = chain_of(work, 2, rules=RuleFilter(*changed))
    assert list(chain.iterate_filtered(queries)) == []


def test_the_words_of_the_prompt_must_not_come_back(work, queries):
    spoken = "The picture shows a brown dog on the grass. The edit paints the dog red"
    _, rows, _ = judge_all(work, queries, prompts=templates(system=f"Write such as: {spoken}."))
    rules = [violation["rule"] for violation in rows["8:1", 0].result["violations"]]
    assert rules == ["leaked_prompt"]


def test_tokens_are_those_of_the_tokenizer(tiny_backbone, work, queries):
    count = load_token_counter(str(tiny_backbone))
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    text = "A red dog on the grass."
    assert count(text) == len(tokenizer.encode(text, add_special_tokens=False)) > 6
    assert load_token_counter("embedded")("red star") == 2
    with pytest.raises(ValueError, match=r"'no such' is no folder .*'words' counts.*filter.token"):
        load_token_counter("no such")
    _, rows, _ = judge_all(work, queries, settings=FilterSettings(str(tiny_backbone)))
    assert rows["8:1", 0].result["answer_tokens"] == count(text)
