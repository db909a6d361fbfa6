import json
import re

import pytest

from tracelib.data.jsonl import DataError, read_rows, write_rows
from tracelib.data.rationales import RationaleRow, parse_rationale, write_rationales
from tracelib.types import Rationale

HARD = RationaleRow("10:1", 7, 1, "0 a.", "1 b.", 0.5, "teacher", "someone")
EASY = RationaleRow("10:2", 3, 0, None, None, None, "oracle", "someone")
FIELDS = {
    "qid": "10:1",
    "task_id": 7,
    "difficulty": 1,
    "reasoning": "0 ä.",
    "answer": "1 b.",
    "cot_conf": 0.5,
    "source": "teacher",
    "teacher": "someone",
}


def parse_file(path):
    return [parse_rationale(row) for row in read_rows(path)]


def test_rows_survive_writing_and_reading(tmp_path):
    path = tmp_path / "rationales" / "rows.jsonl"
    write_rationales(path, [HARD, EASY])
    assert parse_file(path) == [HARD, EASY]
    assert next(read_rows(path)).fields == {**FIELDS, "reasoning": "0 a."}
    assert HARD.rationale == Rationale("0 a.", "1 b.", "teacher")
    assert HARD.rationale.text == "0 a. 1 b."
    assert EASY.rationale is None


def test_an_easy_row_may_have_a_rationale(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({**FIELDS, "difficulty": 0, "source": "oracle"})
    )
    (row,) = parse_file(tmp_path / "rows.jsonl")
    assert (row.difficulty, row.rationale) == (0, Rationale("0 ä.", "1 b.", "oracle"))


@pytest.mark.parametrize("difficulty", [-1, 0, 1])
@pytest.mark.parametrize("text", ["0 a 1 b", None])
def test_the_models_own_thought_has_no_parts(tmp_path, difficulty, text):
    own = RationaleRow("10:3", 7, difficulty, text, None, None, "self", "me")
    write_rows(tmp_path / "rows.jsonl", [{**own.format_fields(), "tokens": 4.0}])
    (row,) = parse_file(tmp_path / "rows.jsonl")
    assert row == own
    assert (row.rationale and row.rationale.text) == text


def test_control_tokens_are_stripped(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({**FIELDS, "answer": "1 b.<|im_end|>"}))
    assert parse_file(tmp_path / "rows.jsonl")[0].answer == "1 b."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "difficulty 1, reasoning '0 ä.', answer ''"),
        ({"reasoning": ""}, "difficulty 1, reasoning ''"),
        ({"answer": None, "reasoning": None}, "difficulty 1 needs both texts"),
        ({"answer": "<|im_end|>"}, "difficulty 1 needs both texts"),
        ({"answer": None, "difficulty": 0}, "both or none"),
        ({"difficulty": 2}, "difficulty 2 is none of"),
        ({"difficulty": True}, "difficulty True is none of"),
        ({"difficulty": None}, "'difficulty' is missing"),
        ({"task_id": 9}, "task_id 9 is none of"),
        ({"source": "me"}, "source 'me' is none of ['teacher', 'oracle', 'self']"),
        ({"source": "self"}, "answer '1 b.' in a row of source 'self'"),
        ({"answer": None, "difficulty": -1}, "both or none"),
        ({"teacher": None}, "'teacher' is missing"),
        ({"qid": None}, "'qid' is missing"),
        ({"cot_conf": 1.5}, "cot_conf 1.5"),
        ({"cot_conf": float("nan")}, "cot_conf nan"),
        ({"qid": "10"}, "id '10' is not 'D:N'"),
        ({"reasoning": 3}, "reasoning 3 is no string"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(FIELDS)}\n{json.dumps({**FIELDS, **change})}\n")
    with pytest.raises(DataError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(message)):
        parse_file(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"a": 1}])
    with pytest.raises(ZeroDivisionError):
        write_rows(path, ({"a": 1 / divisor} for divisor in (1, 0)))
    assert [row.fields for row in read_rows(path)] == [{"a": 1}]
    assert list(tmp_path.iterdir()) == [path]
