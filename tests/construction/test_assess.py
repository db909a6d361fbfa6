"""The phase `assess`: rule, labels and teacher, each over a small Scenes."""

import asyncio
import json
import re
from dataclasses import replace

import pytest

from tests.construction.rule_teacher import RuleTeacher, read_text
from tests.construction.test_templates import QUERY
from tracelib.construction.assess import (
    AssessSettings,
    RuleAssessor,
    TeacherAssessor,
    UtilityAssessor,
    number_assessor,
    read_assessed,
    run_assess,
)
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.queries import QuerySettings, SourceQueries
from tracelib.data.jsonl import DataError

EDITS = r"\d (swap|turn|paint|make|copy|flip)"
BY_RULE = RuleAssessor(hard_query_pattern=EDITS)


@pytest.fixture
def queries(tiny_scenes):
    return SourceQueries(QuerySettings(tiny_scenes))


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "assess"
    folder.mkdir()
    (folder / "edits.yaml").write_text("user: 'Edit? {query}'\ntasks: [6, 7, 8]\n")
    (folder / "general.yaml").write_text("user: 'Hard? {instruction} {query}'\n")
    return folder


def assess(folder, queries, assessors, **changes):
    """Run the phase; return its rows by query and assessor's name."""
    settings = AssessSettings(assessors, next(iter(assessors)))
    with Journal(folder / "work") as work:
        watch = lambda name: lambda progress, counts: None  # noqa: E731
        asyncio.run(run_assess(settings, queries, work, watch, **changes))
        journal = work.open_phase("assess")
        return {
            (q.query_id, name): journal.read_row(q.query_id, number_assessor(name))
            for q in queries
            for name in assessors
        }


def write_verdict(request):
    difficulty = int(bool(re.search(EDITS, read_text(request))))
    return f'Well: ```json\n{{"reason": "because", "difficulty": {difficulty}}}\n```'


def test_the_rule_splits_m_beir_as_the_paper_does():
    hard = {"cirr", "fashioniq", "infoseek", "oven"}
    for name in (*hard, "visualnews", "mscoco", "fashion200k", "webqa", "edis", "nights"):
        query = replace(QUERY, dataset=name, text="1 swap")
        assert BY_RULE.judge(query).difficulty == (name in hard)
    assert BY_RULE.judge(replace(QUERY, dataset="scenes", text="1 swap")).difficulty == 1
    assert BY_RULE.judge(replace(QUERY, dataset="scenes", text="a swap")).difficulty == 0
    with pytest.raises(ValueError, match=r"'scenes' is in neither.*hard_query_pattern"):
        RuleAssessor().judge(replace(QUERY, dataset="scenes"))
    with pytest.raises(ValueError, match="'cirr' is in reasoning_datasets and in"):
        RuleAssessor(direct_datasets=("cirr",))
    with pytest.raises(ValueError, match="no regular expression"):
        RuleAssessor(hard_query_pattern="(")


def test_every_assessor_has_its_rows(tmp_path, queries, prompts):
    teacher = RuleTeacher(write_verdict)
    rows = assess(tmp_path, queries, {"rule": BY_RULE, "model": TeacherAssessor(teacher, prompts)})
    assert len(rows) == len(teacher.requests) * 2 == 320
    for query in queries:
        by_rule, by_model = (rows[query.query_id, name] for name in ("rule", "model"))
        is_hard = int(bool(re.search(EDITS, query.text)))
        assert by_rule.result["difficulty"] == by_model.result["difficulty"] == is_hard
        assert by_rule.result["by"] == "rule"
        assert by_model.result == {
            "difficulty": is_hard,
            "reason": "because",
            "by": "model",
            "model": "rule",
            "prompt_tokens": 10,
            "completion_tokens": 5,
        }
    assert {request.schema is None for request in teacher.requests} == {False}
    assert {request.max_tokens for request in teacher.requests} == {256}


def test_one_template_changed_makes_its_queries_stale_alone(tmp_path, queries, prompts):
    assess(tmp_path, queries, {"model": TeacherAssessor(RuleTeacher(write_verdict), prompts)})
    (prompts / "edits.yaml").write_text("user: 'An edit? {query}'\ntasks: [6, 7, 8]\n")
    teacher = RuleTeacher(write_verdict)
    assess(tmp_path, queries, {"model": TeacherAssessor(teacher, prompts)})
    edits = [query for query in queries if query.task_id >= 6]
    assert sorted(map(read_text, teacher.requests)) == sorted(f"An edit? {q.text}" for q in edits)
    for change in ({"seed": 1}, {"temperature": 0.5}, {"max_tokens": 9}):
        asked = RuleTeacher(write_verdict)
        assess(tmp_path, queries, {"model": TeacherAssessor(asked, prompts, **change)})
        assert len(asked.requests) == 160


def test_assessors_come_and_go_without_the_others_being_asked_again(tmp_path, queries, prompts):
    teacher = RuleTeacher(write_verdict)
    model = TeacherAssessor(teacher, prompts)
    assess(tmp_path, queries, {"rule": BY_RULE, "model": model})
    assess(tmp_path, queries, {"model": model})
    assess(tmp_path, queries, {"new": BY_RULE, "model": model, "rule": BY_RULE})
    assert len(teacher.requests) == 160


def test_another_way_to_ask_the_same_model_makes_all_stale(tmp_path, queries, prompts):
    for key in ("rule", 'rule {"top_p": 0.9}'):
        teacher = RuleTeacher(write_verdict, key=key)
        assess(tmp_path, queries, {"model": TeacherAssessor(teacher, prompts)})
        assert len(teacher.requests) == 160


def test_patterns_read_replies_without_json(tmp_path, queries, prompts):
    assessor = TeacherAssessor(
        RuleTeacher(lambda request: "think\n" if "swap" in read_text(request) else "easy"),
        prompts,
        hard_pattern="^think",
        easy_pattern="^easy",
    )
    rows = assess(tmp_path, queries, {"model": assessor})
    for query in queries:
        result = rows[query.query_id, "model"].result
        assert (result["difficulty"], result["reason"]) == (
            (1, "think") if "swap" in query.text else (0, "easy")
        )
    for text, message in (("easy think", "neither"), ("perhaps", "neither")):
        with pytest.raises(ValueError, match=message if text == "perhaps" else "easy"):
            TeacherAssessor(
                assessor.teacher, prompts, hard_pattern="think", easy_pattern="easy"
            ).parse_reply(text)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("hard", "no JSON object"),
        ("{difficulty: 1}", "no JSON object"),
        ('{"difficulty": 2, "reason": "x"}', "difficulty 2"),
        ('{"difficulty": true, "reason": "x"}', "difficulty True"),
        ('{"difficulty": "1", "reason": "x"}', "difficulty '1'"),
        ('{"difficulty": 1}', "gives no reason"),
        ('{"difficulty": 1, "reason": " "}', "gives no reason"),
        pytest.param('{"difficulty":' + "[" * 100_000 + "}", "unreadable reply: ", id="deep"),
    ],
)
def test_an_unreadable_verdict_is_quarantined_with_its_reply(
    tmp_path, queries, prompts, reply, message
):
    def answer(request):
        return reply if "/10:3/" in request.key else write_verdict(request)

    rows = assess(tmp_path, queries, {"model": TeacherAssessor(RuleTeacher(answer), prompts)})
    row = rows["10:3", "model"]
    assert (row.status, row.attempt, row.result["reply"]) == ("quarantined", 3, reply)
    assert message in row.error
    assert sum(row.status == "done" for row in rows.values()) == 159


def test_half_a_character_of_a_reason_is_replaced(prompts):
    text = r'{"difficulty": 1, "reason": "two \udc00 edits"}'
    assert TeacherAssessor(RuleTeacher(), prompts).parse_reply(text).reason == "two ? edits"


def test_labels_of_a_run_are_taken_and_missing_ones_quarantined(tmp_path, queries):
    path = tmp_path / "route_labels.jsonl"

    def write(labels, split="train"):
        rows = [
            {"qid": qid, "task_id": 0, "difficulty": label, "reasoning": None, "answer": None,
             "cot_conf": None, "source": "self", "teacher": "run", "split": split}
            for qid, label in labels
        ]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return UtilityAssessor(path)

    every_label = [(query.query_id, place % 3 - 1) for place, query in enumerate(queries)]
    labels = every_label[:150]
    rows = assess(tmp_path, queries, {"use": write(labels)})
    for query_id, label in labels:
        row = rows[query_id, "use"]
        assert row.result["difficulty"] == (label == 1)
        assert ("as well without" in row.result["reason"]) == (label == -1)
    assert rows["10:160", "use"].status == "quarantined"
    # Another label makes its own row stale, and a label that came frees a quarantined one.
    changed = [(labels[0][0], 1), *labels[1:], every_label[150]]
    again = assess(tmp_path, queries, {"use": write(changed)})
    assert {key[0] for key in rows if rows[key] != again[key]} == {
        labels[0][0],
        every_label[150][0],
    }
    with pytest.raises(DataError, match=r"labels of \['val'\], but data.split is 'train'"):
        assess(tmp_path, queries, {"use": write(labels[2:5], "val")})
    with pytest.raises(DataError, match="qid '10:1' has two rows"):
        write([("10:1", 0), ("10:1", 1)])


def test_settings_are_checked(tmp_path, prompts):
    teacher = RuleTeacher()
    with pytest.raises(ValueError, match=r"assess.use is 'b'.*\['a'\]"):
        AssessSettings({"a": BY_RULE}, "b")
    twin = next(f"b{n}" for n in range(99_999) if number_assessor(f"b{n}") == number_assessor("a"))
    with pytest.raises(ValueError, match=rf"'a' and '{twin}' have the same sample.*rename one"):
        AssessSettings({"a": BY_RULE, "c": BY_RULE, twin: BY_RULE}, "a")
    for changes, message in (
        ({"hard_pattern": "x"}, "set both, or neither"),
        ({"hard_pattern": "(", "easy_pattern": "x"}, "no regular expression"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            TeacherAssessor(teacher, prompts, **changes)
    (prompts / "oracle.yaml").write_text("user: '{target}'\nsource: oracle\n")
    with pytest.raises(ValueError, match="'oracle' is of source 'oracle'"):
        TeacherAssessor(teacher, prompts)


def test_a_verdict_of_other_settings_decides_nothing(tmp_path, queries):
    assess(tmp_path, queries, {"rule": BY_RULE, "other": RuleAssessor(hard_query_pattern="a")})
    with Journal(tmp_path / "work") as work:
        for use in ("rule", "other"):
            settings = AssessSettings(
                {"rule": BY_RULE, "other": RuleAssessor(hard_query_pattern="a")}, use
            )
            rows = [read_assessed(settings, use, query, work) for query in queries]
            assert {row.result["by"] for row in rows} == {use}
        changed = AssessSettings({"rule": RuleAssessor(hard_query_pattern="swap")}, "rule")
        rows = {query: read_assessed(changed, "rule", query, work) for query in queries}
        assert {q for q in rows if rows[q] is None} == {
            q for q in queries if re.search(EDITS, q.text)
        }
