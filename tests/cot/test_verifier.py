"""Planted answers are what they are called, and a verifier's numbers are those of a known one."""

import asyncio
import re
from collections import Counter

import pytest
import yaml

from tests.construction.sample_rows import ScriptedTeacher
from tracelib.construction.queries import QuerySettings, SourceQueries
from tracelib.construction.verifiers.caption import CaptionVerifier
from tracelib.data.mbeir import MBEIRReader

NUM = 36
TEMPLATE = {"source": "oracle", "user": "{target_image} {target}"}


@pytest.fixture(scope="module")
def queries(tiny_scenes):
    return SourceQueries(QuerySettings(tiny_scenes))


@pytest.fixture(scope="module")
def rows(tiny_scenes):
    return {row.query_id: row for row in MBEIRReader(tiny_scenes).read_rationales("train")}


@pytest.fixture
def planted(queries, rows, load_script):
    return load_script("planted_answers").plant_answers(queries, rows, NUM, 0)


def name_tiles(scene):
    return [f"{colour} {shape}" for colour, shape in scene.tiles]


def test_half_are_right_and_each_kind_of_wrong_comes_as_often(planted, rows, load_script):
    kinds = Counter(answer.kind for answer in planted)
    wrong = load_script("planted_answers").WRONG_KINDS
    assert kinds == {"right": NUM // 2, **dict.fromkeys(wrong, NUM // 12)}
    assert len({answer.query.query_id for answer in planted}) == NUM
    for answer in planted:
        row = rows[answer.query.query_id]
        assert answer.is_right == (answer.answer == row.answer)
        assert answer.reasoning == row.reasoning


def test_wrong_answers_are_what_they_are_called(planted, rows, load_script):
    script = load_script("planted_answers")
    chains = {key: script.read_states(row) for key, row in rows.items() if row.difficulty == 1}
    finals = {chain[-1].state for chain in chains.values()}
    for answer in planted:
        chain = chains[answer.query.query_id]
        target = chain[-1]
        said = re.fullmatch(r"\d+ (.*)\.", answer.answer)[1]
        assert (said == target.state) == answer.is_right
        if answer.kind == "attribute_off":
            assert said in {neighbour.state for neighbour in target.neighbours()}
        elif answer.kind == "state_before_last":
            assert said == chain[-2].state
        elif answer.kind in ("other_query", "neighbour_card"):
            assert said in finals
        elif answer.kind == "swapped_tiles":
            words = said.replace(" / ", " ").split()
            tiles = [" ".join(words[i : i + 2]) for i in range(0, 8, 2)]
            assert sorted(tiles) == sorted(name_tiles(target))
            assert sum(a != b for a, b in zip(tiles, name_tiles(target), strict=True)) == 2
        elif answer.kind == "vague":
            assert "shape" in said


def test_the_choice_is_the_seeds(queries, rows, planted, load_script):
    plant = load_script("planted_answers").plant_answers
    assert plant(queries, rows, NUM, 0) == planted
    assert plant(queries, rows, NUM, 1) != planted
    with pytest.raises(ValueError, match="num is 30, no positive multiple of 12"):
        plant(queries, rows, 30, 0)
    with pytest.raises(ValueError, match=r"num is 1200; the hard queries here are enough for \d+"):
        plant(queries, rows, 1200, 0)


def test_no_rule_can_tell_them_apart(planted, load_script):
    rules = {"min_english_words": 0.0, "min_shared_words": 0, "max_repeated_ngrams": 0.5}
    settings = {"rules": rules, "filter": {"tokenizer": "embedded"}}
    passing = load_script("verifier").count_passing(planted, settings)
    assert passing == Counter(answer.kind for answer in planted)


def judge(planted, tmp_path, load_script, describe):
    """Judge by a model that says of a target what `describe` makes of its right answer."""
    (tmp_path / "describe.yaml").write_text(yaml.safe_dump(TEMPLATE))
    verifier = CaptionVerifier(ScriptedTeacher(None), tmp_path, strip_pattern=r"^\d+ ")
    captions = {f"{number}": describe(number, answer) for number, answer in enumerate(planted)}
    verifier.teacher.write = lambda request: captions[request.key]
    script = load_script("verifier")
    return script.summarize(asyncio.run(script.judge_answers(planted, verifier, 0.7, 4)))


def test_a_perfect_eye_has_precision_and_recall_of_one(planted, rows, tmp_path, load_script):
    report = judge(planted, tmp_path, load_script, lambda n, a: rows[a.query.query_id].answer)
    assert (report["precision"], report["recall"]) == (1.0, 1.0)
    assert report["kept"].pop("right") == [NUM // 2, NUM // 2]
    assert set(map(tuple, report["kept"].values())) == {(0, NUM // 12)}
    assert sum(part["num_answers"] for part in report["by_target"].values()) == NUM
    assert report["curve"][-1] == {"agreement": 1.0, "precision": 1.0, "recall": 1.0}
    assert report["curve"][0]["precision"] < 1.0  # one word in eight is not enough


def test_an_eye_that_errs_is_measured(planted, rows, tmp_path, load_script):
    """It repeats wrong answers, and of every third right one it says too little."""

    def describe(number, answer):
        if not answer.is_right:
            return answer.answer
        return "star" if number % 3 == 0 else answer.answer

    report = judge(planted, tmp_path, load_script, describe)
    num_right_kept = sum(a.is_right and n % 3 != 0 for n, a in enumerate(planted))
    assert report["precision"] == num_right_kept / (num_right_kept + NUM // 2)
    assert report["recall"] == num_right_kept / (NUM // 2)
    assert report["kept"]["vague"] == [NUM // 12, NUM // 12]
    report = judge(planted, tmp_path, load_script, lambda number, answer: "?!")
    assert (report["num_without_verdict"], report["recall"]) == (NUM, 0.0)
