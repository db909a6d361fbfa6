from dataclasses import replace

import pytest

from tests.construction.report.written_work import (
    ERROR,
    JUDGE,
    MODEL,
    make_recipe,
    make_row,
    make_text,
    write_assessed,
    write_filtered,
    write_generated,
    write_sample,
    write_verified,
    write_work,
)
from tracelib.construction.assess import AssessSettings, RuleAssessor
from tracelib.construction.generate import GenerateSettings
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.queries import QuerySettings, SourceQueries
from tracelib.construction.report.sample_gathering import gather_samples
from tracelib.construction.report.survey import Survey
from tracelib.construction.rules.rationale_check import RuleLimits
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.price import Price
from tracelib.construction.verification import IS_REREAD, VerifySettings


@pytest.fixture(scope="module")
def queries(tiny_scenes):
    return SourceQueries(QuerySettings(tiny_scenes))


@pytest.fixture(scope="module")
def work(queries, tmp_path_factory):
    with write_work(tmp_path_factory.mktemp("survey") / "work", queries) as work:
        yield work


@pytest.fixture(scope="module")
def survey(queries, work):
    return Survey(make_recipe(queries.root, work.folder), queries, work)


@pytest.fixture
def hard(queries):
    return [query for query in queries if query.task_id in (1, 6, 7, 8)]


@pytest.fixture
def fresh(tmp_path):
    with Journal(tmp_path / "work") as work:
        yield work


def count(queries, work, **changes):
    recipe = make_recipe(queries.root, work.folder, **changes)
    return Survey(recipe, queries, work)


def test_every_sample_is_counted_where_it_fell_out(survey):
    """Of 80 hard queries eight have each fate, and each two samples."""
    counts = survey.summary.datasets["scenes"]
    states = {
        phase: {k: v for k, v in found.items() if v} for phase, found in counts.states.items()
    }
    assert states == {
        "assess": {"done": 320},
        "generate": {"done": 112, "quarantined": 16, "failed": 16, "missing": 16},
        "filter": {"done": 80, "dropped": 32},
        "verify": {"done": 48, "dropped": 32},
    }
    assert counts.rules == {
        ("generate", "quarantined"): 16,
        ("generate", "failed"): 16,
        ("generate", "pending"): 16,
        ("filter", "answer_tokens"): 16,
        ("filter", "repeated_ngrams"): 16,
        ("filter", "missing_tag"): 16,
        ("verify", "inconsistent"): 16,
        ("verify", "low_confidence"): 16,
        ("select", "not_chosen"): 24,
        ("select", "unanswered"): 56,
    }
    assert (counts.num_queries, counts.num_kept, counts.num_direct) == (160, 24, 80)
    assert counts.num_rows + counts.num_unanswered == counts.num_queries
    assert survey.summary.errors["generate"] == {ERROR: 16}
    assert survey.summary.writers == {("teacher", MODEL): 24}


def test_lengths_are_of_all_that_has_parts_and_of_what_was_kept(survey):
    every, kept = survey.summary.reasoning_tokens
    assert (every.num_values, kept.num_values) == (96, 24)  # 112 less 16 without tags
    every, kept = survey.summary.confidence
    assert every.to_json()["counts"] == {"60": 16, "75": 48, "90": 16}
    assert kept.to_json()["counts"] == {"75": 24}


def test_assessors_are_compared(survey):
    (pair,) = survey.summary.agreements.pairs
    assert (pair.first, pair.second, pair.num_queries) == ("rule", "judge", 160)
    assert pair.num_first_hard == pair.num_second_hard == 8
    counts = survey.summary.datasets["scenes"]
    assert counts.num_hard == counts.num_easy == {"rule": 80, "judge": 80}


def test_every_reply_is_paid_once_and_forever(queries, fresh, hard):
    query, teacher = hard[0], EndpointTeacher("http://none/v1", MODEL, price=Price(1e6, 2e6))
    write_assessed(fresh, query, "rule", 1)
    for _ in range(3):  # written anew twice: all three were paid
        write_generated(fresh, query, 0, make_text(query, 0))
    result = {"model": JUDGE, "prompt_tokens": 50, "completion_tokens": 10, IS_REREAD: True}
    result |= {"consistent": True, "confidence": 0.9, "reason": ""}
    write_verified(fresh, query, 0, True, 0.9)
    row = make_row(query.query_id, "verify", 0, "done", result)
    fresh.open_phase("verify").append([row])
    failed = {"model": MODEL, "prompt_tokens": 7, "completion_tokens": 3}
    row = make_row(query.query_id, "generate", 1, "failed", failed, "no JSON")
    fresh.open_phase("generate").append([row])
    templates = make_recipe(queries.root, fresh.folder).generate.templates
    settings = GenerateSettings(teacher, templates, num_samples=2)
    summary = count(queries, fresh, generate=settings).summary
    usage = summary.usage["generate", MODEL]
    assert (usage.num_replies, usage.prompt_tokens, usage.completion_tokens) == (4, 307, 63)
    assert usage.cost == summary.cost == 307 + 2 * 63
    assert summary.usage["verify", JUDGE].num_replies == 1
    assert summary.usage["verify", JUDGE].cost is None


def test_verdicts_of_an_older_text_are_none(queries, fresh, hard):
    query = hard[0]
    write_assessed(fresh, query, "rule", 1)
    write_sample(fresh, query, 0, 0)
    assert count(queries, fresh).summary.datasets["scenes"].num_kept == 1
    write_generated(fresh, query, 0, make_text(query, 5))
    counts = count(queries, fresh).summary.datasets["scenes"]
    assert counts.num_kept == 0
    assert counts.states["filter"] == {"stale": 1}
    assert counts.states["verify"] == {}
    assert ("filter", "pending") in counts.rules


def test_samples_of_a_query_that_is_easy_now_are_history(queries, fresh, hard):
    write_assessed(fresh, hard[0], "rule", 1)
    write_sample(fresh, hard[0], 0, 1)
    write_assessed(fresh, hard[0], "rule", 0)
    survey = count(queries, fresh)
    counts = survey.summary.datasets["scenes"]
    assert counts.states["generate"] == {}
    assert counts.num_direct == 1
    assert ("filter", "answer_tokens") not in counts.rules
    assert survey.summary.usage["generate", MODEL].num_replies == 1


def test_without_a_verifier_its_phase_is_none(queries, fresh, hard):
    write_assessed(fresh, hard[0], "rule", 1)
    write_generated(fresh, hard[0], 0, make_text(hard[0], 0))
    write_filtered(fresh, hard[0], 0)
    summary = count(queries, fresh, verify=VerifySettings()).summary
    assert summary.datasets["scenes"].num_kept == 1
    assert summary.count_states("verify") == {}
    assert summary.confidence[1].num_values == 0


def test_rows_of_another_recipe_are_stale_and_not_put_out(queries, work):
    recipe = make_recipe(queries.root, work.folder)
    hotter = replace(recipe.generate, temperature=0.8)
    surer = replace(recipe.verify, min_confidence=0.75)
    other = AssessSettings({name: RuleAssessor(("scenes",)) for name in ("rule", "judge")}, "rule")
    changes = {
        "assess": ({"assess": other}, {"stale": 320}, 0),
        "generate": ({"generate": hotter}, {"stale": 144, "missing": 16}, 0),
        "filter": ({"rules": RuleLimits(max_answer_tokens=63)}, {"stale": 112}, 0),
        "verify": ({"verify": surer}, {"stale": 80}, 0),
    }
    for phase, (change, states, num_kept) in changes.items():
        counts = count(queries, work, **change).summary.datasets["scenes"]
        assert {k: v for k, v in counts.states[phase].items() if v} == states
        assert counts.num_kept == num_kept
        assert counts.rules[phase, "pending"] == sum(states.values()) / (1 + (phase == "assess"))


def test_an_empty_work_folder_is_all_missing(queries, fresh):
    survey = count(queries, fresh)
    counts = survey.summary.datasets["scenes"]
    assert counts.states["assess"] == {"missing": 320}
    assert counts.rules == {("assess", "pending"): 160}
    assert gather_samples(survey) == {}


def test_every_kind_has_its_examples_and_none_comes_twice(survey):
    groups = gather_samples(survey)
    assert list(groups) == [
        "kept scenes",
        "filter answer_tokens",
        "filter missing_tag",
        "filter repeated_ngrams",
        "generate quarantined",
        "select not_chosen",
        "select unanswered",
        "verify inconsistent",
        "verify low_confidence",
        "direct",
    ]
    samples = [sample for group in groups.values() for sample in group]
    places = [(s.query.id, s.sample, s.verdict == "unanswered") for s in samples]
    assert len(set(places)) == len(places)
    assert len(groups["kept scenes"]) == 24
    assert all(0 < len(group) <= 5 for name, group in list(groups.items())[1:-1])


def test_an_example_shows_every_rule_that_it_broke(survey):
    groups = gather_samples(survey)
    for sample in groups["filter answer_tokens"]:
        assert [reason.rule for reason in sample.reasons] == ["answer_tokens", "repeated_ngrams"]
        assert sample.writing.reasoning.startswith("The edits")
        assert sample.judgement is None
    (unread, *_) = groups["filter missing_tag"]
    assert unread.writing.reasoning is None
    assert unread.writing.raw == "<reasoning>The card is turned and"
    (unsure, *_) = groups["verify low_confidence"]
    assert unsure.judgement.is_consistent
    assert unsure.judgement.confidence == 0.6
    assert unsure.verdict == "dropped"
    (given_up, *_) = groups["generate quarantined"]
    assert given_up.verdict == "quarantined"
    assert given_up.writing is None
    assert given_up.reasons[0].detail == ERROR
    kept = groups["kept scenes"][0]
    assert (kept.verdict, kept.reasons) == ("kept", ())
    assert kept.difficulty == "hard, by rule: It has edits."
    assert kept.writing.reasoning_tokens == 40
    assert {sample.verdict for sample in groups["direct"]} == {"direct"}
