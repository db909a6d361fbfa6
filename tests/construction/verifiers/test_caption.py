import pytest
import yaml

from tests.construction.sample_rows import ScriptedTeacher, make_query
from tracelib.construction.teachers.teacher import Reply
from tracelib.construction.verifiers.caption import CaptionVerifier, measure_agreement

TARGET = "red star blue moon / green heart red moon"


@pytest.fixture
def folder(tmp_path):
    template = {"source": "oracle", "user": "{target_image}\n{target}"}
    (tmp_path / "describe.yaml").write_text(yaml.safe_dump(template))
    return tmp_path


@pytest.fixture
def verifier(folder):
    return CaptionVerifier(ScriptedTeacher(str), folder, strip_pattern=r"^\s*\d+ ")


def read(verifier, caption, answer):
    return verifier.read_reply(Reply(caption, "m", 1, 1, 0.1, "stop"), make_query(1), answer)


@pytest.mark.parametrize(
    ("answer", "agreement"),
    [
        (f"2 {TARGET}.", 1.0),
        (f"3 {TARGET.upper()}", 1.0),
        ("2 red star blue moon / green heart red star.", 7 / 8),
        ("2 red star blue moon / green heart.", 6 / 8),
        (f"2 {TARGET} red moon.", 8 / 10),
        ("2 blue moon red star / green heart red moon.", 4 / 8),
        ("2 a card", 0.0),
        ("", 0.0),
    ],
)
def test_the_answer_must_say_the_same_words_at_the_same_places(verifier, answer, agreement):
    verdict = read(verifier, f"0 {TARGET}.", answer)
    assert verdict.confidence == measure_agreement(answer[2:], TARGET) == agreement
    assert verdict.is_consistent == (agreement == 1.0)
    assert TARGET in verdict.reason


def test_min_agreement_is_the_least_that_is_consistent(folder):
    loose = CaptionVerifier(ScriptedTeacher(str), folder, min_agreement=0.75)
    assert loose.describe_reading() == {"strip_pattern": None, "min_agreement": 0.75}
    caption = "red star blue moon"
    assert read(loose, caption, "red star blue heart").is_consistent
    assert not read(loose, caption, "red star green heart").is_consistent


def test_the_description_is_asked_for_without_the_answer(verifier, folder):
    query = make_query(1, target_text="A card.")
    requests = [verifier.build_request("k", query, "why", answer) for answer in ("red", "blue")]
    assert requests[0] == requests[1]
    (message,) = requests[0].messages
    assert message["content"] == [
        {"type": "image_path", "path": "mbeir_images/t1.jpg"},
        {"type": "text", "text": "A card."},
    ]
    (folder / "describe.yaml").write_text("source: oracle\nuser: '{target} {answer}'\n")
    with pytest.raises(ValueError, match=r"'describe' has the slot \{answer\}.*written without"):
        CaptionVerifier(ScriptedTeacher(str), folder)


def test_a_template_shows_the_target_and_may_set_the_longest_reply(folder, verifier):
    assert verifier.build_request("k", make_query(1), "", "red").max_tokens == 128
    (folder / "describe.yaml").write_text("source: oracle\nuser: '{target}'\nmax_tokens: 9\n")
    verifier = CaptionVerifier(ScriptedTeacher(str), folder)
    assert verifier.build_request("k", make_query(1), "", "red").max_tokens == 9
    (folder / "describe.yaml").write_text("source: oracle\nuser: '{query}'\n")
    with pytest.raises(ValueError, match=r"'describe' is of source 'oracle'.*without the target"):
        CaptionVerifier(ScriptedTeacher(str), folder)


def test_a_description_without_a_word_is_unreadable(verifier):
    with pytest.raises(ValueError, match=r"the description '2 \.' has no word"):
        read(verifier, "2 .", "2 .")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_agreement": 0.0}, r"min_agreement is 0.0; allowed above 0 up to 1"),
        ({"min_agreement": 1.1}, "min_agreement is 1.1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"strip_pattern": "("}, r"strip_pattern '\(' is no regular expression"),
    ],
)
def test_values_out_of_range_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        CaptionVerifier(ScriptedTeacher(str), folder, **changes)
