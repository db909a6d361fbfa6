import itertools
import re

import pytest

from tracelib.construction.rules import tags

RULES = (
    tags.find_missing_tags,
    tags.find_repeated_tags,
    tags.find_misplaced_tags,
    tags.find_malformed_tags,
    tags.find_foreign_tags,
    tags.find_text_outside_tags,
)


def find_all(text):
    return [violation.rule for rule in RULES for violation in rule(text)]


def test_every_arrangement_of_up_to_six_pieces_is_judged_as_by_the_grammar():
    pieces = (*tags.TAGS, "x", " ")
    grammar = re.compile(r"\s*<reasoning>[x\s]*</reasoning>\s*<answer>[x\s]*</answer>\s*")
    num_whole = 0
    for count in range(7):
        for arrangement in itertools.product(pieces, repeat=count):
            text = "".join(arrangement)
            is_whole = bool(grammar.fullmatch(text))
            num_whole += is_whole
            assert (find_all(text) == []) == is_whole
            assert tags.has_tags(text) or not is_whole
    assert num_whole == 1 + 7 + 30  # with no, one or two pieces between and around the tags


def test_parts_are_parsed_whatever_stands_outside():
    text = "so <reasoning> a\n< b </reasoning> then <answer>c </answer> end"
    assert tags.parse_rationale_text(text) == ("a\n< b", "c")
    outside = [violation.detail for violation in tags.find_text_outside_tags(text)]
    assert outside == ["before them: 'so'", "between them: 'then'", "after them: 'end'"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<reasoning>a</reasoning>",
        "<answer>b</answer><reasoning>a</reasoning>",
        "<reasoning>a<answer>b</answer></reasoning>",
        "<reasoning>a</reasoning><answer>b</answer><answer>c</answer>",
    ],
)
def test_other_forms_are_not_parsed(text):
    assert not tags.has_tags(text)
    with pytest.raises(
        ValueError, match=r"does not have <reasoning> \.\. </reasoning> \.\. <answer>"
    ):
        tags.parse_rationale_text(text)


@pytest.mark.parametrize(
    "tag",
    ["<Answer>", "</ANSWER>", "< answer>", "</ answer >", "<answer/>", "<answer x='1'>", "<answer"],
)
def test_malformed_tag(tag):
    assert find_all(f"<reasoning>a</reasoning><answer>b {tag}</answer>") == ["malformed_tag"]


@pytest.mark.parametrize("tag", ["<|im_end|>", "<think>", "</s>", "<br/>", "[INST]", "<answers>"])
def test_foreign_tag(tag):
    assert find_all(f"<reasoning>a</reasoning><answer>b {tag}</answer>") == ["foreign_tag"]


@pytest.mark.parametrize("words", ["1 < 2", "a<3", "x > y", "<>", "<|>", "[1]", "an answer> here"])
def test_what_is_no_tag(words):
    assert find_all(f"<reasoning>a</reasoning><answer>{words}</answer>") == []


def test_a_long_loop_of_tags_is_judged_at_once():
    text = "<reasoning>a</reasoning><answer>" * 5000
    assert set(find_all(text)) == {"missing_tag", "repeated_tag"}
