"""Queries, a work folder with rows, and a teacher that says what a function says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tracelib.construction.assess import AssessSettings, number_assessor
from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.journal_row import JournalRow
from tracelib.construction.queries import SourceQuery
from tracelib.construction.sample_chain import SampleChain
from tracelib.construction.teachers.teacher import Reply
from tracelib.construction.templates import PromptTemplate, TemplateSet


def make_query(number, text="paint the dog red", target_text="", dataset="cirr", **changes):
    fields = {
        "query_id": f"8:{number}",
        "dataset": dataset,
        "task_id": 7,
        "text": text,
        "image_path": f"mbeir_images/{number}.jpg",
        "instruction": "Find the picture after the edit.",
        "target_id": f"8:{number}",
        "target_text": target_text,
        "target_image_path": f"mbeir_images/t{number}.jpg",
        "source_caption": None,
        "positive_ids": (f"8:{number}", f"8:{number + 900}"),
    }
    return SourceQuery(**{**fields, **changes})


class Queries(list):
    """Some queries, as `SourceQueries` offers them."""

    root = Path("nowhere")

    def find(self, query_id):
        return next(query for query in self if query.query_id == query_id)


GOOD = "<reasoning>{}</reasoning><answer>{}</answer>"
REASONING = (
    "The picture shows a brown dog on the grass. The edit paints the dog red and leaves the grass "
    "as it is."
)


def good_text(answer="A red dog on the grass.", reasoning=REASONING):
    return GOOD.format(reasoning, answer)


def templates(folder=Path("here"), **changes):
    fields = {"name": "all", "system": "You reason about pictures.", "user": "{query}", **changes}
    return TemplateSet([PromptTemplate(**fields)], folder)


INPUT = compute_input_hash(None, "input")


class AnyInput:
    """A phase whose inputs are all the same, so that its rows can be written by hand."""

    def __init__(self, **settings):
        self.settings = SimpleNamespace(**settings)

    def hash_input(self, *_):
        return INPUT


ANY_INPUT = AnyInput()
ASSESS = AssessSettings({"rule": ANY_INPUT}, "rule")


def append(work, phase, query_id, sample, result, status="done", error=None, input_hash=INPUT):
    row = JournalRow(query_id, phase, sample, status, input_hash, 1, result, error)
    work.open_phase(phase).append([row])


def append_assessed(work, query_id, difficulty, status="done", error=None):
    result = {"difficulty": difficulty, "reason": "so", "by": "rule"} if status == "done" else {}
    input_hash = ASSESS.hash_input("rule", None)
    append(work, "assess", query_id, number_assessor("rule"), result, status, error, input_hash)


def append_generated(work, query_id, sample, text):
    result = {
        "text": text,
        "source": "teacher",
        "template": "all",
        "prompt_hash": "ab12",
        "model": "large",
    }
    append(work, "generate", query_id, sample, result)


def chain_of(work, num_samples=1, difficulties=(1,), rules=ANY_INPUT, verification=ANY_INPUT):
    generate = AnyInput(num_samples=num_samples, difficulties=difficulties)
    return SampleChain(work, ASSESS, generate, rules, verification)


class ScriptedTeacher:
    """Answers with what `write` makes of a request, and keeps the requests."""

    def __init__(self, write, name="scripted"):
        self.name, self.key, self.write, self.requests = name, name, write, []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        return None

    async def ask(self, request):
        self.requests.append(request)
        return Reply(self.write(request), self.name, 7, 3, 0.5, "stop")
