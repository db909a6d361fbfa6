import numpy as np
import pytest

from tracelib.retrieval.store import SHARD_ROWS, build_row_type
from tracelib.retrieval.stored_side import StoredSide

SPANS = {
    "a_task0": range(0, SHARD_ROWS + 300),
    "b_task1": range(SHARD_ROWS + 300, SHARD_ROWS + 420),
}
NUM = SHARD_ROWS + 420
LENGTHS = np.random.default_rng(1).integers(1, 50, NUM)
VALUES = np.random.default_rng(2).standard_normal((NUM, 5)).astype(np.float32)
REPEATS = {SHARD_ROWS + 5: 3, SHARD_ROWS + 9: 3, 7: 2}


def build(folder, first_places=None):
    sources = {"a_task0": "hash a", "b_task1": "hash b"}
    return StoredSide(
        folder,
        {"weights": "x"},
        sources,
        SPANS,
        np.arange(1, NUM + 1),
        build_row_type(5),
        first_places,
    )


def repeat():
    first_places = np.arange(NUM)
    first_places[list(REPEATS)] = list(REPEATS.values())
    return first_places


def plan(side, batch_size, rank=0, world_size=1):
    return side.plan_batches(LENGTHS, batch_size, side.list_open_shards(), rank, world_size)


def embed(side, batches, limit=None):
    return [side.write(batch, {"embedding": VALUES[batch]}) for batch in batches[:limit]]


def read_files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def finish(folder, world_size=1, batch_size=50, limit=None):
    sides = [build(folder, repeat()) for _ in range(world_size)]
    for rank, side in enumerate(sides):
        embed(side, plan(side, batch_size, rank, world_size), limit)
    if limit is None:
        for side in sides:
            side.fill_repeats()
    return sides[0]


def test_every_record_is_planned_once_in_batches_of_similar_length(tmp_path):
    plans = [plan(build(tmp_path), 50, rank, 2) for rank in range(2)]
    batches = plans[0] + plans[1]
    assert sorted(p for batch in batches for p in batch) == list(range(NUM))
    assert max(map(len, batches)) <= 50
    assert all(np.all(np.diff(LENGTHS[batch]) >= 0) for batch in batches)
    assert all(
        len({p // SHARD_ROWS for p in batch if p < SHARD_ROWS + 300}) <= 1 for batch in batches
    )


def test_small_shards_share_a_batch_and_large_ones_do_not(tmp_path):
    """The last 300 of one column and the 120 of the other fit into one batch."""
    for batch_size, sizes in ((420, [420]), (419, [300, 120])):
        batches = plan(build(tmp_path), batch_size)
        assert [len(b) for b in batches[-len(sizes) :]] == sizes
        assert all(max(batch) < SHARD_ROWS for batch in batches[: -len(sizes)])
        assert np.all(np.diff(LENGTHS[batches[-1]]) >= 0)
    one, other = (plan(build(tmp_path), 420, rank, 2) for rank in range(2))
    assert [len(batch) for batch in other] == [420]
    assert sum(map(len, one)) == SHARD_ROWS


def embed_together(side, batches):
    """Give each row what depends on the rest of its batch."""
    for batch in batches:
        side.write(batch, {"embedding": VALUES[batch] + VALUES[batch].sum(0)})


def test_a_shared_batch_cut_short_between_its_shards_gives_the_same_bytes(tmp_path, monkeypatch):
    side = build(tmp_path / "whole")
    embed_together(side, plan(side, 500))
    side = build(tmp_path / "cut")
    batches = plan(side, 500)
    with monkeypatch.context() as context:
        context.setattr(side.parts["b_task1"], "write", None)
        with pytest.raises(TypeError, match="not callable"):
            embed_together(side, batches)
    side = build(tmp_path / "cut")
    assert side.list_open_shards() == [("b_task1", 0)]
    assert [len(batch) for batch in plan(side, 500)] == [420]
    embed_together(side, plan(side, 500))
    assert read_files(tmp_path / "cut") == read_files(tmp_path / "whole")


def test_what_was_stored_before_stays_when_its_neighbour_is_embedded(tmp_path):
    side = build(tmp_path)
    batches = plan(side, 33)
    embed(side, [batch for batch in batches if batch[0] < SHARD_ROWS + 300])
    side = build(tmp_path)
    (batch,) = plan(side, 500)
    assert len(batch) == 420
    assert side.write(batch, {"embedding": -VALUES[batch]})
    signs = (side.read("embedding") * VALUES).sum(1) > 0
    assert signs.tolist() == [place < SHARD_ROWS + 300 for place in range(NUM)]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_bytes_do_not_depend_on_ranks_or_interruptions(tmp_path, world_size):
    finish(tmp_path / "whole")
    finish(tmp_path / "cut", world_size=2, limit=3)
    finish(tmp_path / "cut", world_size=1, limit=2)
    side = finish(tmp_path / "cut", world_size=world_size)
    assert read_files(tmp_path / "cut") == read_files(tmp_path / "whole")
    assert side.read("embedding").shape == (NUM, 5)


def test_another_batch_size_completes_a_store(tmp_path):
    finish(tmp_path / "cut", limit=3)
    finish(tmp_path / "cut", batch_size=33)
    assert read_files(tmp_path / "cut") == read_files(finish_whole(tmp_path))


def finish_whole(tmp_path):
    finish(tmp_path / "whole")
    return tmp_path / "whole"


def test_repeats_are_embedded_once_and_equal_their_first(tmp_path):
    side = build(tmp_path, repeat())
    planned = [p for batch in plan(side, 50) for p in batch]
    assert set(range(NUM)) - set(planned) == set(REPEATS)
    rows = finish(tmp_path).read("embedding")
    for place, first in REPEATS.items():
        np.testing.assert_array_equal(rows[place], rows[first])
    assert len(np.unique(rows, axis=0)) == NUM - len(REPEATS)


def test_a_rank_without_work_repeats_a_batch_that_is_not_written(tmp_path):
    side = build(tmp_path)
    batches = plan(side, 50, 4, 5)
    assert len(batches) == 1
    assert embed(side, batches) == [False]
    assert len(side.list_open_shards()) == 3
    assert not list(tmp_path.rglob("*.npy"))


def test_a_whole_store_plans_one_batch_and_leaves_it_alone(tmp_path):
    finish(tmp_path)
    before = read_files(tmp_path)
    side = build(tmp_path, repeat())
    batches = plan(side, 50)
    assert len(batches) == 1
    side.write(batches[0], {"embedding": -VALUES[batches[0]]})
    assert read_files(tmp_path) == before


@pytest.mark.parametrize("chunk_size", [100, SHARD_ROWS, 10_000])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_chunks_of_all_ranks_are_the_pool(tmp_path, chunk_size, world_size):
    side = finish(tmp_path)
    chunks = [
        chunk
        for rank in range(world_size)
        for chunk in side.iterate_chunks("a_task0", chunk_size, rank, world_size)
    ]
    assert max(len(rows) for _, rows in chunks) <= chunk_size
    rows = np.concatenate([rows for _, rows in chunks])
    np.testing.assert_array_equal(rows, side.read("embedding")[: SHARD_ROWS + 300])
    lengths = [0, *(len(rows) for _, rows in chunks[:-1])]
    assert [place for place, _ in chunks] == np.cumsum(lengths).tolist()
    assert [place for place, _ in side.iterate_chunks("b_task1", 1000)] == [SHARD_ROWS + 300]


def test_what_is_left_is_dealt_to_all_ranks(tmp_path):
    """A rank that was interrupted early leaves its shards to everybody."""
    side = build(tmp_path, repeat())
    embed(side, plan(side, 50, 0, 3))
    side.fill_repeats()
    rest = build(tmp_path, repeat())
    plans = [plan(build(tmp_path, repeat()), 50, rank, 2) for rank in range(2)]
    assert len(rest.list_open_shards()) == 2
    assert min(map(len, plans)) >= 1
    assert not set(map(tuple, plans[0])) & set(map(tuple, plans[1]))
