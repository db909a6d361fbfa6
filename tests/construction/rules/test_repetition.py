from random import Random

import pytest

from tracelib.construction.rules.repetition import (
    find_repetition,
    measure_repetition,
)


def measure_slowly(words, num_words):
    ngrams = [words[i : i + num_words] for i in range(len(words) - num_words + 1)]
    again = sum(ngram in ngrams[:i] for i, ngram in enumerate(ngrams))
    return again / len(ngrams) if ngrams else 0


@pytest.mark.parametrize("num_words", [1, 2, 4])
def test_share_equals_a_slow_count(num_words):
    rng = Random(num_words)
    for length in range(40):
        words = rng.choices("abc", k=length)
        assert measure_repetition(words, num_words) == measure_slowly(words, num_words)


def test_closed_forms():
    words = [str(i) for i in range(50)]
    assert measure_repetition(words, 4) == 0
    assert measure_repetition(words + words, 4) == 47 / 97
    assert measure_repetition(["a"] * 50, 4) == 46 / 47
    assert measure_repetition(words[:3], 4) == 0
    assert measure_repetition([], 4) == 0


@pytest.mark.parametrize(("num_again", "is_found"), [(7, False), (8, False), (9, True)])
def test_threshold_is_the_largest_that_is_allowed(num_again, is_found):
    words = [f"w{i}" for i in range(40 - num_again)]
    text = " ".join(words + words[: num_again + 3])  # 40 4-grams
    assert measure_repetition(text.split(), 4) == num_again / 40
    found = list(find_repetition("answer", text, 4, 0.2))
    assert [violation.rule for violation in found] == ["repeated_ngrams"] * is_found


def test_case_and_punctuation_do_not_hide_a_repetition():
    text = "One two, three four. ONE (two) three; four!"
    (violation,) = find_repetition("reasoning", text, 4, 0.1)
    assert violation.detail == "0.200 of the 4-grams of the reasoning came before, allowed are 0.1"
