import pytest

from tracelib.construction.rules.phrases import (
    BOILERPLATE,
    REFUSALS,
    find_boilerplate,
    find_refusals,
)
from tracelib.construction.rules.words import normalize_text


@pytest.mark.parametrize(
    ("find", "phrases", "rule"),
    [(find_refusals, REFUSALS, "refusal"), (find_boilerplate, BOILERPLATE, "boilerplate")],
)
def test_each_phrase_is_found_in_any_case_and_punctuation(find, phrases, rule):
    assert len({normalize_text(phrase) for phrase in phrases}) == len(phrases)
    for phrase in phrases:
        for text in (phrase, f"well, {phrase.upper()}: x", phrase.replace("'", "’")):
            (violation,) = find(text, phrases)
            assert violation.rule == rule
            assert repr(phrase) in violation.detail


@pytest.mark.parametrize(
    "text",
    [
        "A sign says sorry, we are closed.",
        "He cannot swim, and she can't either.",
        "An AI generated model of a car stands on the ground.",
        "Fiji cannot be seen.",
        "True words on the ground",
        "The bottle holds a word",
    ],
)
def test_near_misses(text):
    assert list(find_refusals(text, REFUSALS)) == []
    assert list(find_boilerplate(text, BOILERPLATE)) == []


def test_all_phrases_of_a_text_are_named_in_one_violation():
    (violation,) = find_refusals("No, never. NO!", ["no", "never", "not"])
    assert violation.detail == "says 'no', 'never'"
