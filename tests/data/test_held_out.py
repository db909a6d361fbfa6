from itertools import pairwise

import numpy as np
import pytest

from tests.tiny import cut_scenes
from tracelib.data.held_out import build_held_out_set, mark_held_out, mark_share
from tracelib.data.mbeir import MBEIRReader

IDS = np.arange(5_000_000, 5_020_000)


@pytest.fixture(scope="module")
def reader(tiny_scenes, tmp_path_factory):
    return MBEIRReader(cut_scenes(tiny_scenes, tmp_path_factory.mktemp("held_out") / "scenes"))


def test_the_share_is_that_asked_for_and_the_choice_is_the_ids_own():
    marks = mark_held_out(IDS, 0.2, seed=0)
    assert marks.mean() == pytest.approx(0.2, abs=0.01)
    shuffled = np.random.default_rng(0).permutation(len(IDS))
    assert (mark_held_out(IDS[shuffled], 0.2, seed=0) == marks[shuffled]).all()
    other = mark_held_out(IDS, 0.2, seed=1)  # independent: both hold out 0.2 * 0.2
    assert (other & marks).mean() == pytest.approx(0.04, abs=0.01)
    for_another_purpose = mark_share("easy rationales", IDS, 0.2, seed=0)
    assert (marks & for_another_purpose).mean() == pytest.approx(0.04, abs=0.01)


def test_a_larger_share_holds_out_more_of_the_same():
    marks = [mark_held_out(IDS, share, seed=0) for share in (0.0, 0.1, 0.5, 1.0)]
    assert [int(mark.sum()) for mark in (marks[0], marks[-1])] == [0, len(IDS)]
    for fewer, more in pairwise(marks):
        assert (more | ~fewer).all()


def test_a_selection_is_the_rest_without_what_is_left_out(reader):
    queries = reader.read_queries("train", None, "random", 0)
    is_kept = mark_held_out(queries.ids, 0.4, seed=0)
    found = queries.select(is_kept)
    expected = [query for query, kept in zip(queries, is_kept, strict=True) if kept]
    assert list(found) == expected
    assert 0 < len(found) < len(queries)
    assert found.query_ids == [query.query_id for query in expected]
    assert found.difficulty.tolist() == queries.difficulty[is_kept].tolist()
    assert list(found.select(np.zeros(len(found), bool))) == []
    again = found.select(np.arange(len(found)) % 2 == 0)
    assert list(again) == expected[::2]


def test_a_selection_keeps_all_prompts_of_a_query(reader):
    queries = reader.read_queries("train", None, "all")
    marks = mark_held_out(queries.ids, 0.5, seed=0)
    assert list(queries.select(marks)) == [q for q, m in zip(queries, marks, strict=True) if m]


def test_the_held_out_set_has_each_query_once(reader, tmp_path):
    queries, pool = reader.read_queries("train"), reader.read_union_pool("train")
    once = build_held_out_set(queries, pool, 0.5, seed=0)
    repeated = queries.select(np.ones(len(queries), bool))
    repeated.files = (*queries.files, *queries.files)
    twice = type(queries)("train", repeated.files, queries.instructions)
    assert len(twice) == 2 * len(queries)
    assert list(build_held_out_set(twice, pool, 0.5, seed=0).queries) == list(once.queries)
    assert once.query_spans == {"train": range(len(once.queries))}
    assert once.pools == {"train": range(len(pool))}
    with pytest.raises(ValueError, match=r"none of 160 .* in a share of 0\.0"):
        build_held_out_set(queries, pool, 0.0, seed=0)


def test_train_sources_change_with_any_train_file(reader):
    before = reader.read_sources("train")
    assert list(before) == ["train"]
    assert len(set(before["train"])) == 3
    assert before == reader.read_sources("train")
    union_up = reader.root / "query" / "union_train" / "mbeir_union_up_train.jsonl"
    union_up.parent.mkdir()
    union_up.write_text("{}\n")
    after = reader.read_sources("train")
    union_up.unlink()
    assert after["train"][0] != before["train"][0]
    assert after["train"][1:] == before["train"][1:]
