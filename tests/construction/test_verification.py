import asyncio

import pytest
import yaml

from tests.construction.sample_rows import (
    Queries,
    ScriptedTeacher,
    append,
    append_assessed,
    append_generated,
    chain_of,
    good_text,
    make_query,
)
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.verification import Verification, VerifySettings, run_verify
from tracelib.construction.verifiers.caption import CaptionVerifier
from tracelib.construction.verifiers.judge import JudgeVerifier

ANSWERS = {("8:1", 0): "A red dog on the grass.", ("8:2", 0): "A blue cat.", ("8:2", 1): "A dog."}


def let_pass(work, query_id, sample, answer, status="done"):
    append_generated(work, query_id, sample, good_text(answer))
    result = {"violations": [], "reasoning_tokens": 20, "answer_tokens": 5}
    append(work, "filter", query_id, sample, result, status)


@pytest.fixture
def work(tmp_path):
    with Journal(tmp_path / "work", sync_seconds=60) as work:
        yield work


@pytest.fixture
def queries(work):
    queries = Queries([make_query(1), make_query(2), make_query(3)])
    for query in queries:
        append_assessed(work, query.query_id, 1)
    for (query_id, sample), answer in ANSWERS.items():
        let_pass(work, query_id, sample, answer)
    let_pass(work, "8:3", 0, "A dog.", "dropped")
    return queries


@pytest.fixture
def judge_folder(tmp_path):
    template = {"source": "oracle", "user": "{target_image} {answer}"}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(template))
    return tmp_path


@pytest.fixture
def caption_folder(tmp_path):
    folder = tmp_path / "caption"
    folder.mkdir()
    (folder / "describe.yaml").write_text("source: oracle\nuser: '{target_image} what is it?'\n")
    return folder


def verify(work, queries, verifier, min_confidence=0.7, **changes):
    verification = Verification(verifier, min_confidence) if verifier else None
    chain = chain_of(work, 2, verification=verification)
    progress = asyncio.run(run_verify(queries, chain, 2, lambda *told: None, **changes))
    rows = work.open_phase("verify").read_newest()
    return progress, {(row.query_id, row.sample): row for row in rows}


def reply_by_answer(confidences):
    def write(request):
        words = str(request.messages)
        answer = next(answer for answer in confidences if answer in words)
        is_consistent, confidence = confidences[answer]
        flag = str(is_consistent).lower()
        return f'{{"consistent": {flag}, "confidence": {confidence}, "reason": "so"}}'

    return ScriptedTeacher(write, "judge")


CONFIDENCES = {
    "A red dog on the grass.": (True, 0.7),
    "A blue cat.": (False, 0.99),
    "A dog.": (True, 0.69),
}


def test_consistent_and_sure_enough_is_kept(work, queries, judge_folder):
    teacher = reply_by_answer(CONFIDENCES)
    progress, rows = verify(work, queries, JudgeVerifier(teacher, judge_folder))
    assert (progress.num_rows, progress.num_done, progress.num_dropped) == (3, 1, 2)
    statuses = {key: row.status for key, row in rows.items()}
    assert statuses == {("8:1", 0): "done", ("8:2", 0): "dropped", ("8:2", 1): "dropped"}
    kept = rows["8:1", 0].result
    assert (kept["consistent"], kept["confidence"], kept["reason"]) == (True, 0.7, "so")
    assert (kept["model"], kept["prompt_tokens"], kept["completion_tokens"]) == ("judge", 7, 3)
    assert verify(work, queries, JudgeVerifier(teacher, judge_folder))[0] == progress
    assert len(teacher.requests) == 3


def test_another_threshold_asks_nobody(work, queries, judge_folder):
    teacher = reply_by_answer(CONFIDENCES)
    verifier = JudgeVerifier(teacher, judge_folder)
    verify(work, queries, verifier)
    progress, rows = verify(work, queries, verifier, min_confidence=0.69)
    assert (progress.num_done, progress.num_due) == (2, 0)
    assert rows["8:2", 1].status == "done"
    progress, rows = verify(work, queries, verifier, min_confidence=0.71)
    assert (progress.num_done, progress.num_due) == (0, 0)
    assert len(teacher.requests) == 3


def test_what_the_judge_saw_decides_whether_it_is_asked_again(work, queries, judge_folder):
    teacher = reply_by_answer({**CONFIDENCES, "A red cat.": (True, 0.9)})
    verify(work, queries, JudgeVerifier(teacher, judge_folder))
    let_pass(work, "8:2", 0, "A red cat.")
    progress, rows = verify(work, queries, JudgeVerifier(teacher, judge_folder))
    assert len(teacher.requests) == 4
    assert (rows["8:2", 0].status, progress.num_done) == ("done", 2)
    (judge_folder / "judge.yaml").write_text("source: oracle\nuser: 'Now: {target} {answer}'\n")
    verify(work, queries, JudgeVerifier(teacher, judge_folder))
    assert len(teacher.requests) == 7
    other = reply_by_answer({**CONFIDENCES, "A red cat.": (True, 0.9)})
    other.key = 'judge {"top_p": 0.9}'
    verify(work, queries, JudgeVerifier(other, judge_folder))
    assert len(other.requests) == 3


def test_a_verdict_of_another_question_or_threshold_does_not_count(work, queries, judge_folder):
    verifier = JudgeVerifier(reply_by_answer(CONFIDENCES), judge_folder)
    verify(work, queries, verifier)

    def read(min_confidence=0.7):
        chain = chain_of(work, verification=Verification(verifier, min_confidence))
        return chain.read_verified(queries[0], chain.read_generated(queries[0], 0))

    assert read().status == "done"
    assert read(0.9) is None
    verifier.teacher.key = "another judge"
    assert read() is None


def test_a_description_serves_every_later_answer(work, queries, caption_folder):
    teacher = ScriptedTeacher(lambda request: "A red dog on the grass", "eye")
    verifier = CaptionVerifier(teacher, caption_folder)
    progress, rows = verify(work, queries, verifier)
    assert (rows["8:1", 0].status, progress.num_dropped) == ("done", 2)
    let_pass(work, "8:2", 0, "A red dog, on the grass!")
    let_pass(work, "8:1", 0, "A red dog on the lawn.")
    progress, rows = verify(work, queries, verifier)
    assert (rows["8:1", 0].status, rows["8:2", 0].status) == ("dropped", "done")
    assert rows["8:1", 0].result["confidence"] == 5 / 6
    assert len(teacher.requests) == 3
    loose = CaptionVerifier(teacher, caption_folder, min_agreement=0.8)
    progress, rows = verify(work, queries, loose)
    assert progress.num_done == 2
    assert len(teacher.requests) == 3


def test_an_unreadable_reply_is_tried_again_and_then_quarantined(work, queries, judge_folder):
    teacher = ScriptedTeacher(lambda request: "Yes, fine.", "judge")
    verifier = JudgeVerifier(teacher, judge_folder)
    progress, rows = verify(work, queries, verifier, max_attempts=2)
    assert (progress.num_quarantined, progress.num_due, len(teacher.requests)) == (3, 0, 6)
    assert "no JSON" in rows["8:1", 0].error
    assert rows["8:1", 0].result["reply"] == "Yes, fine."
    verify(work, queries, verifier, max_attempts=2)
    assert len(teacher.requests) == 6
    verify(work, queries, verifier, max_attempts=2, retry_quarantined=True)
    assert len(teacher.requests) == 12


def test_without_a_verifier_there_is_no_phase(work, queries):
    progress, rows = verify(work, queries, None)
    assert (progress, rows) == (None, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_confidence": 1.1}, r"verify.min_confidence is 1.1; allowed 0 .. 1"),
        ({"concurrency": 0}, "verify.concurrency is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VerifySettings(**changes)
