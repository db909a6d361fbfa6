import pytest

from tracelib.construction.rules.answers import (
    find_copied_caption,
    find_unrelated_answer,
    select_content_words,
)


def test_content_words_have_no_function_words_numbers_or_plurals():
    assert select_content_words("It is the 2 Dogs' 3D puppies, isn't it?") == {"dog", "3d", "puppy"}


@pytest.mark.parametrize(("min_shared_words", "is_found"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_words_in_common_are_counted_once_over_all_references(min_shared_words, is_found):
    references = ["", "a Red dog", "dogs on the beach"]
    found = list(find_unrelated_answer("red red dog dogs", references, min_shared_words))
    assert [violation.rule for violation in found] == ["unrelated_answer"] * is_found


@pytest.mark.parametrize("references", [[], ["", ""], ["the one and 2"]])
def test_nothing_to_share(references):
    assert list(find_unrelated_answer("a dog", references, 1)) == []


@pytest.mark.parametrize(
    ("answer", "caption", "is_found"),
    [
        ("a red dog", "A RED dog!", 1),
        ("a-red dog", "a red   dog", 1),
        ("a red dog", "a red dogs", 0),
        ("a red dog", "red dog", 0),
        ("a red dog", None, 0),
        ("", "", 1),
    ],
)
def test_copied_caption(answer, caption, is_found):
    found = [violation.rule for violation in find_copied_caption(answer, caption)]
    assert found == ["copied_caption"] * is_found
