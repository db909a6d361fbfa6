from dataclasses import replace

import pytest

from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.journal_row import JournalRow

SETTINGS = {"teacher": "writer", "temperature": 0.7, "limits": [16, 256]}
PROMPT = [{"role": "user", "content": "Où?"}]
ROW = JournalRow("9:3", "assess", 0, "done", "0" * 16, 1, {"difficulty": 1})
HASH = compute_input_hash(SETTINGS, PROMPT, [ROW])


def test_the_digest_is_the_same_in_every_process():
    assert HASH == "0831bb63fdca0ee1"


@pytest.mark.parametrize("change", [{"input_hash": "1" * 16}, {"attempt": 2}])
def test_how_an_upstream_row_came_about_does_not_matter(change):
    assert compute_input_hash(SETTINGS, PROMPT, [replace(ROW, **change)]) == HASH


def test_the_order_of_keys_does_not_matter():
    assert compute_input_hash(dict(reversed(SETTINGS.items())), PROMPT, [ROW]) == HASH


@pytest.mark.parametrize(
    "arguments",
    [
        ({**SETTINGS, "temperature": 0.70001}, PROMPT, [ROW]),
        ({**SETTINGS, "limits": [256, 16]}, PROMPT, [ROW]),
        ({**SETTINGS, "seed": None}, PROMPT, [ROW]),
        (SETTINGS, [{"role": "user", "content": "Ou?"}], [ROW]),
        (SETTINGS, PROMPT, []),
        (SETTINGS, PROMPT, [ROW, ROW]),
        (SETTINGS, PROMPT, [replace(ROW, sample=1)]),
        (SETTINGS, PROMPT, [replace(ROW, phase="generate")]),
        (SETTINGS, PROMPT, [replace(ROW, status="dropped")]),
        (SETTINGS, PROMPT, [replace(ROW, result={"difficulty": 0})]),
        (PROMPT, SETTINGS, [ROW]),
    ],
)
def test_everything_that_a_result_depends_on_matters(arguments):
    assert compute_input_hash(*arguments) != HASH


@pytest.mark.parametrize("value", [float("inf"), {1}, object()])
def test_what_is_not_json_is_refused(value):
    with pytest.raises(ValueError, match="must be made of JSON values"):
        compute_input_hash(SETTINGS, value)
