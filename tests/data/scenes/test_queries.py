from collections import Counter

import pytest

from tracelib.data.records import TASK_MODALITIES
from tracelib.data.scenes.queries import MIN_POOL_SIZE, DrawnSplit

NUM_DRAWS = 60


@pytest.fixture(scope="module")
def drawn():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIN_POOL_SIZE, "val", 200)
        patch.setitem(MIN_POOL_SIZE, "test", 250)
        splits = {split: DrawnSplit(split, 0) for split in ("train", "val", "test")}
        for split, drawn_split in splits.items():
            drawn_split.add_queries(8 * NUM_DRAWS * (2 if split == "train" else 1))
    return splits


def list_scenes(drawn_split):
    in_pools = {scene for pool in drawn_split.pools.values() for scene in pool}
    return in_pools | {state for query in drawn_split.queries for state in query.states}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("task_id", TASK_MODALITIES)
def test_lengths_have_exact_shares(drawn, split, task_id):
    factor = 2 if split == "train" else 1
    queries = [query for query in drawn[split].queries if query.task_id == task_id]
    lengths = Counter((len(query.states) - 1) for query in queries)
    shares = {0: 34, 1: 8, 2: 6, 3: 6, 4: 6} if task_id < 3 else {1: 18, 2: 14, 3: 14, 4: 14}
    shares = {0: NUM_DRAWS} if task_id in (3, 4) else shares
    assert lengths == {length: count * factor for length, count in shares.items()}


@pytest.mark.parametrize("split", ["val", "test"])
def test_lengths_come_in_random_order(drawn, split):
    is_hard = [len(query.states) > 2 for query in drawn[split].queries if query.task_id == 7]
    assert is_hard not in (sorted(is_hard), sorted(is_hard, reverse=True))


def test_every_scene_is_of_its_split(drawn):
    for split, drawn_split in drawn.items():
        assert {scene.split for scene in list_scenes(drawn_split)} == {split}
        assert {scene.split for scene in drawn_split.pictures} == {split}


@pytest.mark.parametrize("split", ["val", "test"])
def test_no_scene_is_in_two_pools_or_of_two_queries(drawn, split):
    pools = drawn[split].pools
    assert sum(len(pool) for pool in pools.values()) == len(set().union(*pools.values()))
    states = [state for query in drawn[split].queries for state in query.states]
    assert len(states) == len(set(states))
    task_of = {scene: task_id for task_id, pool in pools.items() for scene in pool}
    for query in drawn[split].queries:
        assert {task_of[state] for state in query.states} == {query.task_id}


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_documented_distractor_is_in_the_pool(drawn, split):
    for query in drawn[split].queries:
        pool = drawn[split].pools[query.task_id]
        *before, target = query.states
        assert query.positive is pool[target]
        assert [candidate.scene for candidate in query.negatives[:-2]] == before
        neighbours = [candidate.scene for candidate in query.negatives[-2:]]
        assert len(set(neighbours)) == 2
        assert set(neighbours) <= set(target.neighbours()) - set(query.states)
        assert all(pool[candidate.scene] is candidate for candidate in query.negatives)


@pytest.mark.parametrize("split", ["val", "test"])
def test_pools_are_filled_to_their_size_and_not_beyond(drawn, split):
    wanted = {"val": 200, "test": 250}[split]
    for task_id, pool in drawn[split].pools.items():
        queries = [query for query in drawn[split].queries if query.task_id == task_id]
        needed = sum(1 + len(query.negatives) for query in queries)
        assert len(pool) == max(wanted, needed)


def test_forms_follow_the_task(drawn):
    for drawn_split in drawn.values():
        for query in drawn_split.queries:
            modality, candidate_modality = TASK_MODALITIES[query.task_id]
            assert (query.image_path is not None) == ("image" in modality)
            assert (query.text is not None) == ("text" in modality)
            for candidate in (query.positive, *query.negatives):
                assert candidate.modality == candidate_modality
                assert (candidate.image_path is not None) == ("image" in candidate_modality)
                assert (candidate.text is not None) == ("text" in candidate_modality)


@pytest.mark.parametrize("split", ["val", "test"])
def test_pictures_are_shared_by_a_source_and_its_candidate_only(drawn, split):
    pictures = Counter(q.image_path for q in drawn[split].queries if q.image_path)
    assert set(pictures.values()) == {1}
    for query in drawn[split].queries:
        shared = [c for c in query.negatives if c.image_path and c.image_path == query.image_path]
        assert [c.scene for c in shared] == ([query.states[0]] if query.task_id in (7, 8) else [])
        assert query.positive.image_path is None or query.positive.image_path != query.image_path
    candidates = [c for pool in drawn[split].pools.values() for c in pool.values() if c.image_path]
    assert len({candidate.image_path for candidate in candidates}) == len(candidates)


def test_picture_paths_show_the_scene_that_they_stand_for(drawn):
    for split, drawn_split in drawn.items():
        shown = {
            f"mbeir_images/scenes/{split}/{number}.png": scene
            for number, scene in enumerate(drawn_split.pictures, 1)
        }
        used = set()
        for query in drawn_split.queries:
            assert query.image_path is None or shown[query.image_path] == query.states[0]
            used.add(query.image_path)
        for pool in drawn_split.pools.values():
            for scene, candidate in pool.items():
                assert candidate.image_path is None or shown[candidate.image_path] == scene
                used.add(candidate.image_path)
        assert used - {None} == set(shown)


def test_train_queries_are_pairs_of_rivals(drawn):
    queries = drawn["train"].queries
    num_equal = 0
    for first, second in zip(queries[::2], queries[1::2], strict=True):
        assert first.task_id == second.task_id
        assert second.states[0] in first.states[0].neighbours()
        if first.task_id >= 6:
            assert first.text == second.text  # the same operations
        if first.states[-1] == second.states[-1]:
            num_equal += 1
            assert first.positive is second.positive
            assert first.negatives == second.negatives == []
        else:
            assert first.negatives == [second.positive]
            assert second.negatives == [first.positive]
    assert 0 < num_equal < len(queries) / 8


def test_train_pool_holds_targets_only(drawn):
    for task_id, pool in drawn["train"].pools.items():
        targets = {query.states[-1] for query in drawn["train"].queries if query.task_id == task_id}
        assert set(pool) == targets


def test_train_captions_are_of_the_cards_that_task_6_edits(drawn):
    def list_sources(task_id):
        queries = [query for query in drawn["train"].queries if query.task_id == task_id]
        return [(query.states[0], query.image_path) for query in queries]

    assert list_sources(3) == list_sources(6)
