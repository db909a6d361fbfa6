import pytest

from tracelib.construction.rules.lengths import find_answer_length, find_reasoning_length
from tracelib.construction.rules.violation import Violation


@pytest.mark.parametrize(("num_tokens", "is_found"), [(1, 1), (2, 0), (64, 0), (65, 1)])
@pytest.mark.parametrize(
    ("find", "rule"),
    [(find_reasoning_length, "reasoning_tokens"), (find_answer_length, "answer_tokens")],
)
def test_both_ends_are_allowed(find, rule, num_tokens, is_found):
    found = [Violation(rule, f"{num_tokens} tokens, allowed are 2 .. 64")] * is_found
    assert list(find(num_tokens, 2, 64)) == found
