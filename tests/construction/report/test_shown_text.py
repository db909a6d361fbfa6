import html

from tracelib.construction.report.shown_text import clean_text, escape_text


def test_ordinary_text_stays_as_it_is():
    text = "Ein Bär, 熊, 🐻\n\tzwei Zeilen"
    assert clean_text(text) == text
    marks = "a < b & c > \"d\" 'e'"
    assert html.unescape(escape_text(marks)) == marks
    assert not set("<>\"'") & set(escape_text(marks))


def test_nothing_is_left_that_a_page_may_not_hold():
    shown = clean_text("a\ud800b\x00c\x1b[31md\u202ee\u2066f\x85g\r\nh\ri")
    assert shown.encode().decode() == shown
    assert shown == "a?b\ufffdc\ufffd[31md\ufffde\ufffdf\ufffdg\nh\ufffdi"


def test_a_long_text_says_how_much_is_missing():
    shown = clean_text("x" * 10_000, 100)
    assert shown == "x" * 100 + "… (9,900 characters more)"
    assert clean_text("x" * 100, 100) == "x" * 100


def test_escaping_comes_after_cutting():
    assert escape_text("<" * 5, 3) == "&lt;&lt;&lt;… (2 characters more)"
