import pytest

from tracelib.construction.rules.words import fold_plural, normalize_text, split_ngrams


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\n", ""),
        ("?!", ""),
        ("A  b\nC", "a b c"),
        ("don't don’t", "dont dont"),
        ("T-shirt/top_left", "t shirt top left"),
        ("ＡＢ ﬁn", "ab fin"),
        ("Cafe\u0301 CAFÉ", "café café"),
        ("3.5 € + 2", "3 5 2"),
    ],
)
def test_normalize_text(text, expected):
    assert normalize_text(text) == expected
    assert normalize_text(expected) == expected


@pytest.mark.parametrize("num_words", [1, 2, 3, 4])
def test_number_of_ngrams(num_words):
    assert len(split_ngrams(["a", "b", "c"], num_words)) == max(0, 4 - num_words)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cats", "cat"),
        ("boxes", "box"),
        ("beaches", "beach"),
        ("brushes", "brush"),
        ("glasses", "glass"),
        ("ladies", "lady"),
        ("glass", "glass"),
        ("bus", "bus"),
        ("iris", "iris"),
        ("gas", "gas"),
        ("ties", "tie"),
    ],
)
def test_fold_plural(word, expected):
    assert fold_plural(word) == expected
