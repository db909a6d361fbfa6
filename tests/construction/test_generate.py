"""The phase `generate`: what is asked, what is written down, and what a change makes stale."""

import asyncio
import re
import shutil
from collections import Counter

import pytest

from tests.construction.rule_teacher import RATIONALE, RuleTeacher, read_text, write_rationale
from tracelib.construction.assess import AssessSettings, RuleAssessor, run_assess
from tracelib.construction.generate import GeneratePhase, GenerateSettings, run_generate
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.queries import QuerySettings, SourceQueries

EDITS = r"\d (swap|turn|paint|make|copy|flip)"
ASSESS = AssessSettings({"rule": RuleAssessor(hard_query_pattern=EDITS)}, "rule")


@pytest.fixture
def queries(tiny_scenes):
    return SourceQueries(QuerySettings(tiny_scenes))


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "edit.yaml").write_text("user: '{query_image}Edit: {query}'\ntasks: [6, 7, 8]\n")
    (folder / "general.yaml").write_text(
        "user: 'Describe: {instruction} {query}'\nsystem: Think.\nmax_tokens: 99\n"
    )
    return folder


def watch(name):
    return lambda progress, counts: None


def generate(folder, queries, assess=ASSESS, teacher=None, **settings):
    """Run both phases; return teacher and rows by query and sample."""
    teacher = teacher or RuleTeacher()
    phase = GeneratePhase(GenerateSettings(teacher, folder / "prompts", **settings), assess)
    with Journal(folder / "work") as work:
        asyncio.run(run_assess(assess, queries, work, watch))
        asyncio.run(run_generate(phase, queries, work, watch("generate")))
        rows = list(work.open_phase("generate").read_newest())
    return teacher, {(row.query_id, row.sample): row for row in rows}


def test_hard_queries_get_their_samples_by_their_templates(tmp_path, queries, prompts):
    teacher, rows = generate(tmp_path, queries, num_samples=2, seed=5)
    hard = {query.query_id: query for query in queries if re.search(EDITS, query.text)}
    assert set(rows) == {(query_id, sample) for query_id in hard for sample in (0, 1)}
    by_key = {request.key: request for request in teacher.requests}
    assert len(by_key) == len(teacher.requests) == len(rows)
    for (query_id, sample), row in rows.items():
        query, request = hard[query_id], by_key[f"generate/{query_id}/{sample}"]
        is_edit = query.task_id >= 6
        assert request.temperature == 0.7
        assert request.max_tokens == (512 if is_edit else 99)
        assert (request.messages[0]["role"] == "user") == is_edit
        assert query.image_path is None or query.image_path in read_text(request)
        assert row.result == {
            "text": write_rationale(request),
            "source": "teacher",
            "template": "edit" if is_edit else "general",
            "prompt_hash": row.result["prompt_hash"],
            "model": "rule",
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "latency_seconds": 0.01,
            "finish_reason": "stop",
        }
    seeds = {request.seed for request in teacher.requests}
    assert len(seeds) == len(rows)
    assert all(0 <= seed < 2**31 for seed in seeds)
    shutil.rmtree(tmp_path / "work")
    again, _ = generate(tmp_path, queries, num_samples=2, seed=5)
    assert {request.key: request.seed for request in again.requests} == {
        key: request.seed for key, request in by_key.items()
    }
    hashes = Counter(row.result["prompt_hash"] for row in rows.values())
    assert len(hashes) >= len({(q.image_path, q.text) for q in hard.values()})


def test_an_oracle_sees_the_target_and_says_so(tmp_path, queries, prompts):
    (prompts / "edit.yaml").write_text(
        "user: '{query} {target} {target_image}'\nsource: oracle\ntasks: [8]\n"
    )
    teacher, rows = generate(tmp_path, queries)
    for request in teacher.requests:
        query = queries.find(request.key.split("/")[1])
        source = "oracle" if query.task_id == 8 else "teacher"
        assert rows[query.query_id, 0].result["source"] == source
        sees = query.target_image_path is not None and query.target_image_path in read_text(request)
        assert sees == (source == "oracle")


def test_a_reply_of_another_form_is_rewritten_and_kept(tmp_path, queries, prompts):
    (prompts / "edit.yaml").write_text(
        "user: '{query}'\ntasks: [6, 7, 8]\nreply: '(?P<reasoning>.+) = (?P<answer>.+)'\n"
    )
    teacher = RuleTeacher(
        lambda request: "no idea" if request.key.endswith("/0") else "red - blue = blue"
    )
    _, rows = generate(tmp_path, queries, teacher=teacher, num_samples=2)
    edits = {query.query_id for query in queries if query.task_id >= 6}
    assert edits
    for query_id in edits:
        first, second = rows[query_id, 0].result, rows[query_id, 1].result
        assert (first["text"], "raw" in first) == ("no idea", False)
        assert second["text"] == "<reasoning>red - blue</reasoning><answer>blue</answer>"
        assert second["raw"] == "red - blue = blue"


def test_only_what_changed_is_asked_again(tmp_path, queries, prompts):
    _, rows = generate(tmp_path, queries)
    edits = {query.query_id for query in queries if query.task_id >= 6}
    assert not generate(tmp_path, queries)[0].requests

    (prompts / "edit.yaml").write_text("user: '{query_image}Change: {query}'\ntasks: [6, 7, 8]\n")
    changed, again = generate(tmp_path, queries)
    assert {request.key.split("/")[1] for request in changed.requests} == edits
    assert {key[0] for key in rows if rows[key] != again[key]} == edits

    more, _ = generate(tmp_path, queries, num_samples=3)
    assert len(more.requests) == 2 * len(rows)
    assert not generate(tmp_path, queries, num_samples=2)[0].requests

    otherwise_asked = {"teacher": RuleTeacher(key='rule {"top_p": 0.9}')}
    for change in ({"temperature": 0.6}, {"seed": 1}, otherwise_asked):
        assert len(generate(tmp_path, queries, **change)[0].requests) == len(rows)
        generate(tmp_path, queries)
    # 99 tokens are the general template's own, so another limit is that of edits alone.
    fewer, _ = generate(tmp_path, queries, max_tokens=100)
    assert {request.key.split("/")[1] for request in fewer.requests} == edits


def test_a_query_that_changed_is_asked_again(tmp_path, queries, prompts):
    _, rows = generate(tmp_path, queries)
    root = tmp_path / "scenes"
    ignored = shutil.ignore_patterns("mbeir_images", ".tracelib", "rationales*")
    shutil.copytree(queries.root, root, ignore=ignored)
    path = root / "query/train/mbeir_scenes_train.jsonl"
    path.write_text(path.read_text().replace("copy", "take"))
    edited = {q.query_id for q in queries if "copy" in q.text} & {key[0] for key in rows}
    still_hard = AssessSettings(
        {"rule": RuleAssessor(hard_query_pattern=EDITS[:-1] + "|take)")}, "rule"
    )
    teacher, again = generate(tmp_path, SourceQueries(QuerySettings(root)), still_hard)
    assert edited
    assert {request.key.split("/")[1] for request in teacher.requests} == edited
    assert {key[0] for key in rows if rows[key] != again[key]} == edited


def test_another_reason_for_the_same_verdict_makes_nothing_stale(tmp_path, queries, prompts):
    _, rows = generate(tmp_path, queries)
    wider = AssessSettings({"rule": RuleAssessor(hard_query_pattern=f"({EDITS}) ?")}, "rule")
    teacher, again = generate(tmp_path, queries, wider)
    assert (teacher.requests, again) == ([], rows)
    all_hard = AssessSettings({"rule": RuleAssessor(("scenes",))}, "rule")
    teacher, again = generate(tmp_path, queries, all_hard)
    assert len(teacher.requests) == 160 - len(rows)
    assert {key: again[key] for key in rows} == rows


def test_without_a_verdict_nothing_is_asked(tmp_path, queries, prompts):
    teacher = RuleTeacher()
    phase = GeneratePhase(GenerateSettings(teacher, prompts), ASSESS)
    with Journal(tmp_path / "work") as work:
        asyncio.run(run_generate(phase, queries, work, watch("generate")))
    assert teacher.requests == []


def test_resumed_runs_end_in_the_rows_of_a_whole_one(tmp_path, queries, prompts):
    """Stopped where the first reply, the 20th, and the last but one came in."""
    _, whole = generate(tmp_path, queries)
    folder = tmp_path / "stopped"
    folder.mkdir()
    prompts.rename(folder / "prompts")
    for num_replies in (1, 20, 40, len(whole) - 1):

        def stop(progress, counts, limit=num_replies):
            if progress.num_done >= limit:
                raise InterruptedError

        settings = GenerateSettings(RuleTeacher(), folder / "prompts", concurrency=3)
        with Journal(folder / "work") as work:
            asyncio.run(run_assess(ASSESS, queries, work, watch))
            with pytest.raises(InterruptedError):
                asyncio.run(run_generate(GeneratePhase(settings, ASSESS), queries, work, stop))
            num_done = len(list(work.open_phase("generate").read_newest("done")))
            assert num_replies <= num_done <= num_replies + 2  # those that came in with it
    _, rows = generate(folder, queries)
    assert rows == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "generate.num_samples is 0"),
        ({"num_samples": 2000}, "generate.num_samples is 2000"),
        ({"num_samples": 2, "temperature": 0.0}, "they would be the same"),
        ({"temperature": -0.1}, "generate.temperature is -0.1"),
        ({"max_tokens": 0}, "generate.max_tokens is 0"),
        ({"concurrency": 0}, "generate.concurrency is 0"),
        ({"difficulties": (2,)}, r"generate.difficulties is \(2,\)"),
        ({"difficulties": ()}, "generate.difficulties"),
    ],
)
def test_settings_are_checked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        GenerateSettings(RuleTeacher(), tmp_path, **changes)


def test_a_slot_of_later_phases_is_refused(tmp_path, prompts):
    (prompts / "judge.yaml").write_text("user: '{answer}'\n")
    with pytest.raises(
        ValueError, match=r"'judge' has the slot \{answer\}, which is not written yet"
    ):
        GeneratePhase(GenerateSettings(RuleTeacher(), prompts), ASSESS)


def test_the_tagged_form_is_what_the_rules_take():
    from tracelib.construction.rules.tags import parse_rationale_text

    assert parse_rationale_text(RATIONALE.format("a car")) == (
        "The query asks for one thing alone.",
        "a car",
    )
