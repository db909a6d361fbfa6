import dataclasses
import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from tracelib.construction.rules.rationale_check import Facts, RuleLimits, check_rationale
from tracelib.construction.rules.tags import parse_rationale_text

PLANTED = [
    json.loads(line)
    for line in Path(__file__).with_name("planted_outputs.jsonl").read_text("utf-8").splitlines()
]
"""What teachers may write: `kind` says why a row is there (`violation`, `near_miss` of a rule,
`wrong` or `right` answer), `violations` what the rules must find in it, `is_right` whether the
answer describes `target`, for a verifier, where the rules find nothing."""
FORM_RULES = {
    "missing_tag",
    "repeated_tag",
    "misplaced_tag",
    "malformed_tag",
    "foreign_tag",
    "text_outside_tags",
}
RULES = FORM_RULES | {
    "refusal",
    "boilerplate",
    "leaked_prompt",
    "leaked_id",
    "leaked_target",
    "foreign_letters",
    "foreign_words",
    "few_english_words",
    "repeated_ngrams",
    "reasoning_tokens",
    "answer_tokens",
    "unrelated_answer",
    "copied_caption",
}
LOOSE = {
    "min_reasoning_tokens": 0,
    "max_reasoning_tokens": 10**6,
    "min_answer_tokens": 0,
    "max_answer_tokens": 10**6,
    "max_repeated_ngrams": 1.0,
    "max_foreign_letters": 10**6,
    "min_english_words": 0.0,
    "max_foreign_words": 10**6,
    "min_shared_words": 0,
    "composed_tasks": (),
    "max_target_words": 10**6,
    "max_prompt_words": 10**6,
    "refusals": (),
    "boilerplate": (),
}
FACTS = Facts("make it red", "find the dress", "a blue dress", None, "7:1", "teacher", 7)
REASONING = (
    "The dress in the picture is blue, and the request is to make it red. "
    "So the cut stays and the colour is changed."
)


def count_words(text):
    return len(text.split())


def list_rules(row, **limits):
    facts, limits = Facts(**row["facts"]), RuleLimits(**{**row["limits"], **limits})
    return [v.rule for v in check_rationale(row["text"], facts, limits, count_words)]


def check_dress(reasoning=REASONING, answer="a red dress", facts=FACTS, **limits):
    text = f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>"
    return [v.rule for v in check_rationale(text, facts, RuleLimits(**limits), count_words)]


@pytest.mark.parametrize("row", PLANTED, ids=lambda row: row["name"].replace(" ", "_"))
def test_planted_output_has_exactly_its_violations(row):
    assert list_rules(row) == row["violations"]


def test_what_is_planted():
    assert len({row["name"] for row in PLANTED}) == len(PLANTED)
    kinds = Counter(row["kind"] for row in PLANTED)
    assert kinds["violation"] + kinds["wrong"] >= 60
    assert set(kinds) == {"violation", "near_miss", "wrong", "right"}
    for row in PLANTED:
        assert bool(row["violations"]) == (row["kind"] == "violation")
        assert (row["is_right"] is None) == bool(row["violations"])
        assert row["is_right"] == {"wrong": False, "violation": None}.get(row["kind"], True)
        assert (row["target"] is None) == bool(row["violations"])
    planted = Counter(rule for row in PLANTED for rule in set(row["violations"]))
    assert set(planted) == RULES
    assert min(planted.values()) >= 2


def test_what_has_no_violation_can_be_parsed():
    for row in PLANTED:
        if not row["violations"]:
            assert all(parse_rationale_text(row["text"]))


def test_looser_limits_find_nothing_more_and_leave_the_form():
    assert set(LOOSE) | {"ngram_words"} == {field.name for field in dataclasses.fields(RuleLimits)}
    for row in PLANTED:
        for name, value in LOOSE.items():
            assert Counter(list_rules(row, **{name: value})) <= Counter(row["violations"])
        assert set(list_rules(row, **LOOSE)) <= FORM_RULES | {"leaked_id"}


def test_target_aware_text_is_free_of_leaks_and_of_nothing_else():
    for row in PLANTED:
        aware = {**row, "facts": {**row["facts"], "source": "oracle"}}
        kept = [rule for rule in row["violations"] if rule not in ("leaked_id", "leaked_target")]
        assert list_rules(aware) == kept


def test_blanks_around_the_parts_and_composed_letters_change_nothing():
    for row in PLANTED:
        text = (
            row["text"]
            .replace("<reasoning>", " \n<reasoning>\t")
            .replace("</answer>", " </answer>\n")
        )
        assert list_rules({**row, "text": text}) == row["violations"]
        decomposed = unicodedata.normalize("NFD", text)
        assert list_rules({**row, "text": decomposed}) == row["violations"]


def test_the_two_parts_are_counted_without_tags_and_blanks():
    counted = []
    text = "<reasoning>\nA b. </reasoning> <answer> c </answer>"
    check_rationale(text, FACTS, RuleLimits(), lambda part: counted.append(part) or 20)
    assert counted == ["A b.", "c"]


@pytest.mark.parametrize("part", ["reasoning", "answer"])
@pytest.mark.parametrize(("count", "is_kept"), [(4, False), (5, True), (9, True), (10, False)])
def test_token_limits_include_their_ends(part, count, is_kept):
    text = "<reasoning>R</reasoning><answer>A</answer>"
    limits = RuleLimits(**{**LOOSE, f"min_{part}_tokens": 5, f"max_{part}_tokens": 9})
    counts = {"R": 7, "A": 7, part[0].upper(): count}
    rules = [v.rule for v in check_rationale(text, FACTS, limits, counts.__getitem__)]
    assert rules == ([] if is_kept else [f"{part}_tokens"])


def test_violation_says_what_was_found_and_what_is_allowed():
    text = "<reasoning>R</reasoning><answer>A</answer>"
    limits = RuleLimits(**{**LOOSE, "min_answer_tokens": 2})
    (violation,) = check_rationale(text, FACTS, limits, count_words)
    assert violation.detail == "1 tokens, allowed are 2 .. 1000000"


def test_composed_tasks_are_a_limit():
    rules = [check_dress(answer="A blue dress!", composed_tasks=tasks) for tasks in ((7,), (6, 8))]
    assert rules == [["copied_caption"], []]
    unknown = dataclasses.replace(FACTS, source_caption=None)
    assert check_dress(answer="a blue dress", facts=unknown) == []


def test_shared_words_are_of_instruction_query_and_target_together():
    facts = dataclasses.replace(FACTS, target_text="scarlet gown")
    shared = [check_dress(answer="red gown dress", facts=facts, min_shared_words=n) for n in (3, 4)]
    assert shared == [[], ["unrelated_answer"]]


def test_phrases_are_a_limit():
    assert check_dress(REASONING + " Cheers to you all.", refusals=("cheers, to YOU",)) == [
        "refusal"
    ]
    assert check_dress(REASONING + " I cannot.", refusals=()) == []
    assert check_dress(REASONING + " As is well known.", boilerplate=("well-known",)) == [
        "boilerplate"
    ]


def test_limits_are_config_keys():
    parser = ArgumentParser()
    parser.add_class_arguments(RuleLimits, "rules")
    options = [
        "--rules.max_answer_tokens=3",
        "--rules.composed_tasks=[6, 7]",
        '--rules.refusals=["no"]',
    ]
    parsed = parser.parse_args(options)
    expected = RuleLimits(max_answer_tokens=3, composed_tasks=(6, 7), refusals=("no",))
    assert RuleLimits(**vars(parsed.rules)) == expected


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_reasoning_tokens": 300}, "min_reasoning_tokens 300 and max_reasoning_tokens 256"),
        ({"min_answer_tokens": -1}, "min_answer_tokens -1"),
        ({"max_repeated_ngrams": 1.1}, r"max_repeated_ngrams 1.1 is not in 0 .. 1"),
        ({"min_english_words": float("nan")}, "min_english_words nan"),
        ({"ngram_words": 0}, "ngram_words 0 is less than 1"),
        ({"max_target_words": -1}, "max_target_words -1 is less than 0"),
        ({"refusals": ("no", "?!")}, r"refusals has '\?!', a phrase without a word"),
        ({"boilerplate": ("",)}, "boilerplate has '', a phrase without a word"),
    ],
)
def test_limit_out_of_range_is_refused_by_name(limits, message):
    with pytest.raises(ValueError, match=message):
        RuleLimits(**limits)
