from random import Random

import pytest

from tracelib.construction.rules.leaks import (
    find_copied_run,
    find_leaked_id,
    find_leaked_prompt,
    find_leaked_target,
)


def measure_longest_run(words, others):
    lengths = (
        next(n for n in range(len(words) + 1) if words[i : i + n + 1] != others[j : j + n + 1])
        if i < len(words) and words[i] == others[j]
        else 0
        for i in range(len(words))
        for j in range(len(others))
    )
    return max(lengths, default=0)


def test_a_run_is_found_where_the_longest_common_one_has_its_length():
    rng = Random(0)
    num_found = 0
    for _ in range(300):
        words, others = (rng.choices("abcd", k=rng.randint(0, 20)) for _ in range(2))
        words.append("x")  # ends the longest run of equal words
        longest = measure_longest_run(words, others)
        for num_words in range(1, 8):
            run = find_copied_run(" ".join(words), " ".join(others), [], num_words)
            assert (run is not None) == (longest >= num_words)
            assert run is None or (run in " ".join(words) and run in " ".join(others))
            num_found += run is not None
    assert 300 < num_found < 1800


def test_what_the_query_says_may_be_said():
    assert find_copied_run("a b c d", "a b c d", [], 3) == "a b c"
    assert find_copied_run("a b c d", "a b c d", ["x a B, c"], 3) == "b c d"
    assert find_copied_run("a b c d", "a b c d", ["x a b c", "b c d"], 3) is None
    assert find_copied_run("a b c d", "a b c d", ["a b", "c d"], 3) == "a b c"


@pytest.mark.parametrize(("num_copied", "is_found"), [(6, 0), (7, 0), (8, 1), (9, 1)])
@pytest.mark.parametrize(
    ("find", "rule"), [(find_leaked_target, "leaked_target"), (find_leaked_prompt, "leaked_prompt")]
)
def test_threshold_is_the_most_that_is_allowed(find, rule, num_copied, is_found):
    source = [f"w{i}" for i in range(30)]
    text = " ".join(["x", *source[5 : 5 + num_copied], "y"])
    found = [violation.rule for violation in find(text, " ".join(source), [], 7)]
    assert found == [rule] * is_found


@pytest.mark.parametrize(("num_words", "is_found"), [(7, 0), (8, 1)])
def test_a_short_target_cannot_leak(num_words, is_found):
    target = " ".join(f"w{i}" for i in range(num_words))
    assert len(list(find_leaked_target(target, target, [], 7))) == is_found


def test_nothing_leaks_of_what_is_not_there():
    assert list(find_leaked_target("a b c", None, [], 0)) == []
    assert list(find_leaked_prompt("a b c", "", [], 0)) == []
    assert list(find_leaked_id("a b c", None)) == []


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("10:88", 1),
        ("it is 10:88.", 1),
        ("(10:88)", 1),
        ("id=10:88,", 1),
        ("10:888", 0),
        ("110:88", 0),
        ("10:88:5", 0),
        ("5:10:88", 0),
        ("x10:88", 0),
        ("10 88", 0),
    ],
)
def test_an_id_is_found_whole(text, is_found):
    assert [violation.rule for violation in find_leaked_id(text, "10:88")] == [
        "leaked_id"
    ] * is_found


def test_an_id_is_no_pattern():
    assert list(find_leaked_id("10x88", "10.88")) == []
