"""Queries with their targets, on the files of a small Scenes."""

import json
import shutil
from collections import Counter

import pytest

from tracelib.construction.queries import QuerySettings, SourceQueries
from tracelib.data.jsonl import DataError
from tracelib.data.mbeir import MBEIRReader


def read(root, **changes):
    return SourceQueries(QuerySettings(root, **changes))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_query_is_that_of_the_file_with_its_first_positive(tiny_scenes):
    rows = read_lines(tiny_scenes / "query/train/mbeir_scenes_train.jsonl")
    pool = {
        row["did"]: row
        for row in read_lines(tiny_scenes / "cand_pool/global/mbeir_union_train_cand_pool.jsonl")
    }
    queries = read(tiny_scenes)
    assert (len(queries), queries.dataset_names, queries.root) == (160, ["scenes"], tiny_scenes)
    for row, query in zip(rows, queries, strict=True):
        target = pool[row["pos_cand_list"][0]]
        assert query.query_id == row["qid"]
        assert (query.dataset, query.task_id) == ("scenes", row["task_id"])
        assert query.text.rstrip(".") == (row["query_txt"] or "").rstrip(".")
        assert query.image_path == row["query_img_path"]
        assert (query.target_id, query.target_image_path) == (target["did"], target["img_path"])
        assert query.target_text.lower().rstrip(".") == (target["txt"] or "").lower().rstrip(".")
        assert query.instruction.endswith(".")


def test_every_query_is_found_in_any_order_and_every_pass_is_the_same(tiny_scenes):
    queries = read(tiny_scenes)
    listed = list(queries)
    assert list(queries) == listed
    assert [queries.find(query.query_id) for query in listed[::-7]] == listed[::-7]
    with pytest.raises(ValueError, match="'10:161' is none of the 160"):
        queries.find("10:161")
    with pytest.raises(ValueError, match="'9:1' is none"):
        queries.find("9:1")


def test_the_caption_of_an_edited_picture_is_what_another_query_looks_for_in_it(tiny_scenes):
    queries = list(read(tiny_scenes))
    captions = {query.image_path: query.target_text for query in queries if query.task_id == 3}
    edited = [query for query in queries if query.task_id in (6, 7, 8)]
    assert [q.source_caption for q in edited] == [captions.get(q.image_path) for q in edited]
    assert sum(query.source_caption is not None for query in edited) >= 20
    assert all(query.source_caption is None for query in queries if query.task_id < 6)


def test_val_takes_targets_from_the_local_pools(tiny_scenes):
    reader = MBEIRReader(tiny_scenes)
    for query in read(tiny_scenes, split="val"):
        column = f"scenes_task{query.task_id}"
        pool = {c.candidate_id: c for c in reader.read_pool("val", column)}
        assert pool[query.target_id].text == query.target_text


def test_tasks_and_data_sets_are_selected_and_unknown_ones_refused(tiny_scenes):
    queries = read(tiny_scenes, tasks=[7, 3], datasets=["scenes"])
    assert Counter(query.task_id for query in queries) == {3: 20, 7: 20}
    with pytest.raises(ValueError, match=r"data.datasets has 'cirr'.*\['scenes'\]"):
        read(tiny_scenes, datasets=["scenes", "cirr"])
    with pytest.raises(ValueError, match=r"data\.tasks has 5"):
        read(tiny_scenes, tasks=[5])
    with pytest.raises(ValueError, match="no query of split 'train'"):
        read(tiny_scenes, tasks=[])
    with pytest.raises(ValueError, match=r"data\.max_queries is 0"):
        read(tiny_scenes, max_queries=0)


def test_fewer_queries_are_spread_and_more_are_those_and_others(tiny_scenes):
    few, more, all_queries = (list(read(tiny_scenes, max_queries=n)) for n in (40, 80, 1000))
    assert (len(few), len(more), len(all_queries)) == (40, 80, 160)
    assert {query.query_id for query in few} < {query.query_id for query in more}
    assert [query for query in all_queries if query in few] == few
    assert len({query.task_id for query in few}) == 8
    numbers = [int(query.query_id[3:]) for query in few]
    assert min(numbers) < 40
    assert max(numbers) > 120


def test_the_target_is_the_first_positive_that_is_there(tiny_scenes, tmp_path):
    """As with OVEN, some of whose positives are in another data set's pool."""
    root = tmp_path / "scenes"
    shutil.copytree(tiny_scenes, root, ignore=shutil.ignore_patterns("mbeir_images", ".tracelib"))
    path = root / "query/train/mbeir_scenes_train.jsonl"
    rows = read_lines(path)
    for row in rows[::3]:
        row["pos_cand_list"] = ["10:999999", *row["pos_cand_list"], "10:1"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for before, after in zip(read(tiny_scenes), read(root), strict=True):
        assert (after.target_id, after.target_text) == (before.target_id, before.target_text)


def test_a_query_without_target_in_the_pool_is_named(tiny_scenes, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(tiny_scenes, root, ignore=shutil.ignore_patterns("mbeir_images", ".tracelib"))
    path = root / "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
    query = next(iter(read(root)))
    kept = [
        line for line in path.read_text().splitlines(True) if f'"{query.target_id}"' not in line
    ]
    path.write_text("".join(kept))
    with pytest.raises(DataError, match=f"no pool has '{query.target_id}'.*query '10:"):
        read(root)
