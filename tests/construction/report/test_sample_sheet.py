import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.construction.report import written_work
from tracelib.construction.report import sample_sheet
from tracelib.construction.report.sample import Judgement, Reason, Sample, Side, Writing
from tracelib.construction.report.sample_sheet import Overview, write_sample_sheet
from tracelib.construction.report.tally import Tally

EVIL = f"{written_work.EVIL}\ud800"
VOID = {"meta", "img", "input"}
WRITING = Writing("raw", "It is a dog.", "dog", "large", "edit", "teacher", 17, 2)
SAMPLE = Sample(
    "kept",
    "cirr",
    7,
    0,
    "Find the picture.",
    Side("8:1", "paint it red", None),
    Side("8:2", "a red dog", None),
    "hard, by judge",
    WRITING,
    Judgement(True, 0.75, "It fits."),
    (),
)
DROPPED = replace(
    SAMPLE,
    verdict="dropped",
    dataset="nights",
    reasons=(Reason("answer_tokens", "1 token"), Reason("missing_tag", "no <answer>")),
)


class Page(HTMLParser):
    """Elements with their attributes, and the texts of those of class `text`."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.texts, self.stack = [], [], []
        self.feed(source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((self.stack[-1] if self.stack else ("", {}), data))

    def find(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def texts_of(self, name):
        return [
            text for (_, found), text in self.texts if name in (found.get("class") or "").split()
        ]


def make_overview(**changes):
    tallies = Tally(), Tally()
    tallies[0].add(17)
    empty = Tally(), Tally()
    values = {
        "title": "rationales",
        "lead": "of cirr",
        "counts": {"queries": 12345},
        "drops": {"answer_tokens": 3},
        "histograms": {"Reasoning, tokens": tallies, "Answer, tokens": empty},
    }
    return Overview(**{**values, **changes})


def write(tmp_path, groups, **changes):
    path = tmp_path / "sheet.html"
    num_samples = write_sample_sheet(path, make_overview(**changes), groups, tmp_path)
    return num_samples, path.read_text(encoding="utf-8")


def test_a_card_shows_all_that_is_known(tmp_path):
    _, source = write(tmp_path, {"kept": [SAMPLE], "drops": [DROPPED]})
    page = Page(source)
    first, second = page.find("article")
    assert (first["data-verdict"], first["data-dataset"], first["data-rule"]) == (
        "kept",
        "cirr",
        "",
    )
    assert second["data-rule"] == "answer_tokens missing_tag"
    assert page.texts_of("text")[:6] == [
        "paint it red",
        "Find the picture.",
        "It is a dog.",
        "dog",
        "a red dog",
        "8:2",
    ]
    chips = ["kept", "consistent 0.75", "cirr", "task 7", "dropped"]
    assert page.texts_of("chip")[:5] == chips
    for words in ("12,345", "1 token", "no &lt;answer&gt;", "It fits.", "did not see the target"):
        assert words in source


def test_what_a_teacher_wrote_is_never_markup(tmp_path):
    evil = Sample(
        "dropped",
        f"data {EVIL}",
        7,
        0,
        EVIL,
        Side(EVIL, EVIL, EVIL.replace("\x00", "")),
        Side(EVIL, EVIL, None),
        EVIL,
        Writing(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, None, None),
        Judgement(False, 0.1, EVIL),
        (Reason(EVIL, EVIL),),
    )
    unread = replace(evil, writing=replace(evil.writing, reasoning=None, answer=None))
    _, source = write(
        tmp_path, {"a": [evil], "b": [unread]}, title=EVIL, lead=EVIL, drops={EVIL: 1}
    )
    page = Page(source)
    assert len(page.find("script")) == 1
    assert page.find("img") == []
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    shown = page.texts_of("text")
    assert sum("</p><script>alert(1)</script>" in text for text in shown) == len(shown)


def test_the_page_needs_nothing_but_itself(tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png")
    side = Side("8:1", "", "a.png")
    _, source = write(tmp_path, {"a": [replace(SAMPLE, query=side)]})
    page = Page(source)
    assert page.find("link") == []
    assert [found["src"][:23] for found in page.find("img")] == ["data:image/jpeg;base64,"]
    assert "src" not in page.find("script")[0]
    assert not re.search(r"https?:|url\(|@import|@font-face", source)
    policy = page.find("meta")[1]["content"]
    script = re.search(r"<script>(.*)</script>", source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "prefers-color-scheme: dark" in source


def test_filters_offer_what_is_there(tmp_path):
    _, source = write(tmp_path, {"kept": [SAMPLE], "drops": [DROPPED]})
    fields = dict(re.findall(r'<select id="(\w+)".*?>(.*?)</select>', source))
    values = {name: re.findall('value="(.*?)"', text) for name, text in fields.items()}
    assert values == {
        "verdict": ["", "kept", "dropped"],
        "dataset": ["", "cirr", "nights"],
        "rule": ["", "answer_tokens", "missing_tag"],
    }
    assert Page(source).find("button")[0]["data-show-rule"] == "answer_tokens"


def test_a_missing_picture_is_told(tmp_path):
    _, source = write(tmp_path, {"a": [replace(SAMPLE, target=Side("8:2", "", "gone.png"))]})
    assert "this picture cannot be read" in source
    assert 'title="gone.png"' in source


def test_an_oracle_is_named(tmp_path):
    oracle = replace(SAMPLE, writing=replace(WRITING, source="oracle"))
    _, source = write(tmp_path, {"a": [oracle]})
    assert "saw the target" in source
    assert "did not see the target" not in source


def test_a_full_page_takes_of_every_group_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_sheet, "MAX_BYTES", sample_sheet._RESERVED_BYTES + 60_000)
    long = replace(SAMPLE, writing=replace(WRITING, reasoning="word " * 700))
    many = [replace(long, query=Side(f"8:{number}", "", None)) for number in range(40)]
    few = [replace(long, verdict="dropped", query=Side(f"9:{n}", "", None)) for n in range(2)]
    num_samples, source = write(tmp_path, {"kept": many, "rare": few})
    shown = re.findall(r"query (\d+:\d+)", source)
    assert len(shown) == num_samples < 20
    assert shown[-2:] == ["9:0", "9:1"]
    assert shown[:-2] == [f"8:{number}" for number in range(num_samples - 2)]
    assert f"{42 - num_samples:,} more had no room" in source
    assert len(source.encode()) < sample_sheet.MAX_BYTES


@pytest.mark.parametrize("groups", [{}, {"kept": []}])
def test_nothing_to_show_is_no_error(tmp_path, groups):
    num_samples, source = write(tmp_path, groups, counts={}, drops={}, histograms={})
    assert num_samples == 0
    Page(source)
