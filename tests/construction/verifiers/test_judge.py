import json

import pytest
import yaml

from tests.construction.sample_rows import ScriptedTeacher, make_query
from tracelib.construction.teachers.teacher import Reply
from tracelib.construction.verifiers.judge import SCHEMA, JudgeVerifier, parse_verdict
from tracelib.construction.verifiers.verifier import Verdict

TEMPLATE = {
    "source": "oracle",
    "system": "You judge.",
    "user": "Query: {query_image} {query}\nTrue target: {target_image} {target}\nAnswer: {answer}",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(TEMPLATE))
    return tmp_path


def test_the_judge_sees_query_target_and_answer(folder):
    verifier = JudgeVerifier(ScriptedTeacher(str), folder, max_tokens=99, seed=4)
    query = make_query(1, target_text="A dog that is red.")
    request = verifier.build_request("k", query, "why", "a red dog")
    assert (request.key, request.max_tokens, request.temperature, request.seed) == ("k", 99, 0.0, 4)
    assert request.schema == SCHEMA
    system, user = request.messages
    assert system == {"role": "system", "content": "You judge."}
    pictures = [part["path"] for part in user["content"] if part["type"] == "image_path"]
    assert pictures == ["mbeir_images/1.jpg", "mbeir_images/t1.jpg"]
    words = " ".join(part.get("text", "") for part in user["content"])
    for text in ("paint the dog red", "A dog that is red.", "Answer: a red dog"):
        assert text in words
    text_only = make_query(1, image_path=None, target_image_path=None, target_text="Red.")
    user = verifier.build_request("k", text_only, "", "red").messages[1]["content"]
    assert user.startswith("Query:")
    assert "True target:" in user
    assert "Red." in user


@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```", "\n ```\n{}\n``` "])
def test_a_verdict_is_read_fenced_or_not(wrap):
    written = json.dumps({"reason": "no {star}", "consistent": False, "confidence": 1})
    reply = Reply(wrap.replace("{}", written), "m", 1, 1, 0.1, "stop")
    judge = JudgeVerifier.read_reply
    assert judge(None, reply, make_query(1), "x") == Verdict(False, 1.0, "no {star}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("It is consistent.", "no JSON"),
        ("[true]", "no JSON object"),
        ('{"consistent": "yes", "confidence": 0.9, "reason": ""}', "consistent is no boolean"),
        ('{"consistent": 1, "confidence": 0.9, "reason": ""}', "consistent is no boolean"),
        ('{"confidence": 0.9, "reason": ""}', "consistent is no boolean"),
        ('{"consistent": true, "confidence": 1.01}', r"confidence 1.01 is no number in 0 .. 1"),
        ('{"consistent": true, "confidence": -0.1}', "confidence -0.1 is no number"),
        ('{"consistent": true, "confidence": true}', "confidence True is no number"),
        ('{"consistent": true, "confidence": "0.9"}', "confidence '0.9' is no number"),
        ('{"consistent": true, "confidence": NaN}', "confidence nan is no number"),
        (
            f'{{"consistent": true, "confidence": 1{"0" * 400}}}',
            "confidence 10+ is no number in 0 .. 1",
        ),
        ('{"consistent": true}', "confidence None is no number"),
        ('{"consistent": true, "confidence": 0.9, "reason": 3}', "reason no text"),
    ],
)
def test_anything_else_is_an_unreadable_reply(text, message):
    with pytest.raises(ValueError, match=message):
        parse_verdict(text)


def test_half_a_character_of_a_reason_is_replaced():
    text = r'{"reason": "a \ud83d star", "consistent": true, "confidence": 1}'
    assert parse_verdict(text).reason == "a ? star"


def test_a_template_must_show_the_answer(folder):
    hidden = {**TEMPLATE, "user": "{target}"}
    (folder / "judge.yaml").write_text(yaml.safe_dump(hidden))
    with pytest.raises(ValueError, match=r"'judge' has no slot \{answer\}"):
        JudgeVerifier(ScriptedTeacher(str), folder)
    for changes in ({"user": "{query} {answer}"}, {"user": "{answer}", "source": "teacher"}):
        (folder / "judge.yaml").write_text(yaml.safe_dump({**TEMPLATE, **changes}))
        with pytest.raises(ValueError, match=r"'judge' is of source .* without the target"):
            JudgeVerifier(ScriptedTeacher(str), folder)


def test_a_template_may_set_the_longest_reply(folder):
    (folder / "judge.yaml").write_text(yaml.safe_dump({**TEMPLATE, "max_tokens": 12}))
    verifier = JudgeVerifier(ScriptedTeacher(str), folder, max_tokens=99)
    assert verifier.build_request("k", make_query(1), "why", "red").max_tokens == 12


def test_max_tokens_out_of_range_is_refused(folder):
    with pytest.raises(ValueError, match="max_tokens is 0"):
        JudgeVerifier(ScriptedTeacher(str), folder, max_tokens=0)
