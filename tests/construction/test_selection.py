import pytest

from tests.construction.sample_rows import (
    Queries,
    append,
    append_assessed,
    append_generated,
    chain_of,
    good_text,
    make_query,
)
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.selection import Drop, Selected, select_rows


@pytest.fixture
def work(tmp_path):
    with Journal(tmp_path / "work", sync_seconds=60) as work:
        yield work


def pass_rules(work, query_id, sample, answer="A red dog."):
    append_generated(work, query_id, sample, good_text(answer))
    result = {"violations": [], "reasoning_tokens": 20, "answer_tokens": 3}
    append(work, "filter", query_id, sample, result)


def verify(work, query_id, sample, confidence, consistent=True, **changes):
    result = {"consistent": consistent, "confidence": confidence, "reason": "so"}
    is_kept = consistent and confidence >= 0.7
    append(work, "verify", query_id, sample, result, "done" if is_kept else "dropped", **changes)


def select(work, queries, num_samples=3, difficulties=(1,), has_verifier=True):
    chain = chain_of(work, num_samples, difficulties)
    found = list(select_rows(queries, chain, has_verifier, 0.7))
    rows = [row for row in found if isinstance(row, Selected)]
    drops = [(d.query_id, d.sample, d.phase, d.rule) for d in found if isinstance(d, Drop)]
    return rows, drops, [d for d in found if isinstance(d, Drop)]


def test_the_surest_sample_is_taken_and_of_equals_the_first(work):
    queries = Queries([make_query(1), make_query(2)])
    for number, confidences in ((1, (0.8, 0.9, 0.7)), (2, (0.7, 0.9, 0.9))):
        append_assessed(work, f"8:{number}", 1)
        for sample, confidence in enumerate(confidences):
            pass_rules(work, f"8:{number}", sample)
            verify(work, f"8:{number}", sample, confidence)
    rows, drops, _ = select(work, queries)
    assert [(row.query.query_id, row.thought.generated.sample) for row in rows] == [
        ("8:1", 1),
        ("8:2", 1),
    ]
    thought = rows[0].thought
    assert (thought.confidence, thought.answer, thought.reasoning_tokens) == (0.9, "A red dog.", 20)
    assert drops == [
        ("8:1", 0, "select", "not_chosen"),
        ("8:1", 2, "select", "not_chosen"),
        ("8:2", 2, "select", "not_chosen"),
        ("8:2", 0, "select", "not_chosen"),
    ]


def test_easy_queries_are_direct_and_hard_ones_without_a_thought_have_no_row(work):
    queries = Queries([make_query(1), make_query(2), make_query(3)])
    append_assessed(work, "8:1", 0)
    append_assessed(work, "8:2", 1)
    append_assessed(work, "8:3", None, "quarantined", "no JSON")
    rows, drops, full = select(work, queries, num_samples=1)
    assert [(r.query.query_id, r.difficulty, r.thought, r.assessor) for r in rows] == [
        ("8:1", 0, None, "rule")
    ]
    assert drops == [
        ("8:2", 0, "generate", "pending"),
        ("8:2", None, "select", "unanswered"),
        ("8:3", None, "assess", "quarantined"),
    ]
    assert full[2].detail == "no JSON"
    rows, drops, full = select(work, queries, 1, difficulties=(0,))
    assert [drop[1:] for drop in drops[:2]] == [
        (0, "generate", "pending"),
        (None, "select", "unanswered"),
    ]
    assert "generate.difficulties" in full[1].detail
    assert [row.thought for row in rows] == [None]  # asked for a thought, and easy without one


def test_every_sample_that_fell_out_says_where_and_why(work):
    queries = Queries([make_query(1)])
    append_assessed(work, "8:1", 1)
    append(work, "generate", "8:1", 0, {}, "quarantined", "timeout: 60 s")
    append_generated(work, "8:1", 1, "I cannot.")
    broken = [
        ("refusal", "of refusal"),
        ("missing_tag", "no <answer>"),
        ("missing_tag", "no </answer>"),
    ]
    violations = [{"rule": rule, "detail": detail} for rule, detail in broken]
    append(work, "filter", "8:1", 1, {"violations": violations}, "dropped")
    append_generated(work, "8:1", 2, good_text())
    for sample, confidence, consistent in ((3, 0.69, True), (4, 0.9, False)):
        pass_rules(work, "8:1", sample)
        verify(work, "8:1", sample, confidence, consistent=consistent)
    pass_rules(work, "8:1", 5)
    append(work, "verify", "8:1", 5, {}, "failed", "no JSON")
    pass_rules(work, "8:1", 6)
    verify(work, "8:1", 6, 0.9, input_hash="0" * 16)  # the sample was written anew since
    rows, drops, full = select(work, queries, num_samples=7)
    assert rows == []
    assert [drop[1:] for drop in drops] == [
        (0, "generate", "quarantined"),
        (1, "filter", "refusal"),
        (1, "filter", "missing_tag"),
        (2, "filter", "pending"),
        (3, "verify", "low_confidence"),
        (4, "verify", "inconsistent"),
        (5, "verify", "failed"),
        (6, "verify", "pending"),
        (None, "select", "unanswered"),
    ]
    by_rule = {drop.rule: drop for drop in full}
    assert by_rule["quarantined"].detail == "timeout: 60 s"
    assert (by_rule["refusal"].detail, by_rule["refusal"].reasoning) == ("of refusal", "I cannot.")
    assert by_rule["refusal"].answer is None
    assert by_rule["missing_tag"].detail == "no <answer>; no </answer>"
    assert by_rule["low_confidence"].detail == "0.69, required is 0.7; so"
    assert by_rule["inconsistent"].answer == "A red dog."


def test_what_the_rules_dropped_has_its_parts_where_there_are_any(work):
    append_assessed(work, "8:1", 1)
    append_generated(work, "8:1", 0, good_text("A dog.", "Because."))
    violations = [{"rule": "reasoning_tokens", "detail": "1 token"}]
    append(work, "filter", "8:1", 0, {"violations": violations}, "dropped")
    drop = select(work, Queries([make_query(1)]), num_samples=1)[2][0]
    assert (drop.rule, drop.reasoning, drop.answer) == ("reasoning_tokens", "Because.", "A dog.")


def test_a_near_duplicate_gives_way_to_the_next_sample(work):
    picture = "mbeir_images/same.jpg"
    queries = Queries(
        [
            make_query(1, image_path=picture),
            make_query(2, text="Paint the dog, red!", image_path=picture),
            make_query(3, image_path=picture),
            make_query(4),
        ]
    )
    for number in range(1, 5):
        append_assessed(work, f"8:{number}", 1)
        pass_rules(work, f"8:{number}", 0, answer="a red  dog")
    pass_rules(work, "8:2", 1, answer="a scarlet dog")
    rows, drops, _ = select(work, queries, num_samples=2, has_verifier=False)
    taken = {row.query.query_id: row.thought for row in rows}
    assert {key: thought.generated.sample for key, thought in taken.items()} == {
        "8:1": 0,
        "8:2": 1,
        "8:4": 0,
    }
    assert taken["8:1"].confidence is None
    assert [drop for drop in drops if drop[3] != "pending"] == [
        ("8:2", 0, "select", "near_duplicate"),
        ("8:3", 0, "select", "near_duplicate"),
        ("8:3", None, "select", "unanswered"),
    ]


def test_each_sample_is_in_one_place(work):
    queries = Queries([make_query(number) for number in range(1, 41)])
    for number, query in enumerate(queries):
        append_assessed(work, query.query_id, 1)
        for sample in range(3):
            answer = f"A dog {number % 7} {sample}."
            pass_rules(work, query.query_id, sample, answer)
            verify(work, query.query_id, sample, ((number + sample) % 10) / 10)
    rows, drops, _ = select(work, queries)
    kept = [(row.query.query_id, row.thought.generated.sample) for row in rows]
    dropped = [drop[:2] for drop in drops if drop[1] is not None]
    assert sorted([*kept, *dropped]) == sorted((q.query_id, s) for q in queries for s in range(3))
    unanswered = [drop[0] for drop in drops if drop[1] is None]
    assert sorted([key for key, _ in kept] + unanswered) == sorted(q.query_id for q in queries)
    assert kept
    assert unanswered
