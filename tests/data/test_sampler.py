import random
import time
from collections import Counter

import numpy as np
import pytest

from tests.reference.sampling import compute_shares
from tracelib.data.sampler import TaskBatchSampler, compute_task_shares

TASKS = np.array(random.Random(1).choices((0, 3, 7), k=101), np.int8)
MIXINGS = pytest.mark.parametrize("mixing", ["mixed", "one_task_per_batch"])
EVEN = {"temperature": 1e6}


def make(mixing="mixed", seed=0, epoch=0, rank=0, world_size=1, batch_size=6, tasks=TASKS, **more):
    tasks = np.asarray(tasks, np.int8)
    sampler = TaskBatchSampler(tasks, batch_size, mixing, seed, rank, world_size, **more)
    sampler.set_epoch(epoch)
    return sampler


def draw(*args, **settings):
    sampler = make(*args, **settings)
    batches = list(sampler)
    assert len(batches) == len(sampler) - sampler.first_batch
    return batches


def count_tasks(batches, tasks):
    return Counter(int(tasks[i]) for batch in batches for i in batch)


@MIXINGS
def test_order_depends_on_seed_and_epoch_alone(mixing):
    first = draw(mixing)
    random.seed(5)
    np.random.seed(5)
    assert draw(mixing) == first
    others = [draw(mixing, epoch=1), draw(mixing, seed=1), draw(mixing, seed=-1, epoch=1)]
    assert all(other != first for other in others)
    assert len({str(other) for other in others}) == 3


@MIXINGS
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"weights": {7: 3.0}, "temperature": 2.0}])
def test_ranks_share_out_the_global_batch(mixing, world_size, settings):
    one = draw(mixing, **settings)
    parts = [draw(mixing, rank=r, world_size=world_size, **settings) for r in range(world_size)]
    joined = [[i for part in step for i in part] for step in zip(*parts, strict=True)]
    assert joined == one
    assert all(len(set(batch)) == 6 for batch in joined)
    drawn = [i for batch in joined for i in batch]
    assert (len(drawn) == len(set(drawn))) == (not settings)


@MIXINGS
@pytest.mark.parametrize("first_batch", [0, 1, 9, "all"])
def test_a_resumed_epoch_is_the_rest_of_it(mixing, first_batch):
    whole = draw(mixing, temperature=3.0)
    first_batch = len(whole) if first_batch == "all" else first_batch
    assert draw(mixing, temperature=3.0, first_batch=first_batch) == whole[first_batch:]


@pytest.mark.parametrize("first_batch", [-1, 17])
def test_a_place_outside_the_epoch_is_refused(first_batch):
    with pytest.raises(ValueError, match=rf"first_batch is {first_batch}, allowed 0 \.\. 16"):
        make(first_batch=first_batch)


def test_mixed_uses_all_but_an_incomplete_batch():
    assert len(draw()) == len(TASKS) // 6
    assert any(len({TASKS[i] for i in batch}) > 1 for batch in draw())


def test_one_task_per_batch():
    batches = draw("one_task_per_batch")
    assert all(len({TASKS[i] for i in batch}) == 1 for batch in batches)
    expected = {task: int((task == TASKS).sum()) // 6 * 6 for task in (0, 3, 7)}
    assert count_tasks(batches, TASKS) == expected
    order = [TASKS[batch[0]] for batch in batches]
    assert order != sorted(order)  # the tasks take turns


def test_every_query_is_drawn_over_the_epochs():
    """Also the one of a task whose share of an epoch is half a query."""
    tasks = np.append(TASKS[:100], 4)
    drawn = [
        {i for batch in draw(epoch=e, tasks=tasks, batch_size=51) for i in batch} for e in range(12)
    ]
    assert set.union(*drawn) == set(range(101))
    assert 0 < sum(100 in places for places in drawn) < 12


@MIXINGS
@pytest.mark.parametrize(
    "settings",
    [{}, {"weights": {2: 3.0}}, {"weights": {0: 0.0, 1: 0.25}, "temperature": 2.0}, EVEN],
)
def test_tasks_have_their_shares(mixing, settings):
    tasks = np.repeat([0, 1, 2], [600, 300, 60])
    size = 60
    num_epochs = 40
    batches = [
        b for e in range(num_epochs) for b in draw(mixing, 0, e, 0, 1, size, tasks, **settings)
    ]
    assert len(batches) == num_epochs * 16  # whatever the shares
    found = count_tasks(batches, tasks)
    expected = compute_shares({0: 600, 1: 300, 2: 60}, **settings)
    slots = num_epochs * 960
    for task, share in expected.items():
        # A batch more or less in an epoch, on average over the epochs.
        spread = (size if mixing == "one_task_per_batch" else 1) / num_epochs**0.5
        assert found[task] / num_epochs == pytest.approx(share * 960, abs=3 * spread + 1e-9)
    assert sum(found.values()) == slots
    if mixing == "mixed" and not settings.get("weights"):
        assert all(len({tasks[i] for i in batch}) > 1 for batch in batches)


def test_small_tasks_are_repeated_in_rounds_and_large_ones_cut():
    tasks = np.repeat([0, 1], [900, 60])
    places = [i for batch in draw(tasks=tasks, batch_size=32, **EVEN) for i in batch]
    counts = Counter(places)
    assert sum(counts[i] for i in range(900, 960)) == 480
    assert {counts[i] for i in range(900, 960)} == {8}  # 8 rounds of 60
    assert sorted(counts.values())[-61] == 1  # no other twice


def test_rounds_are_reshuffled():
    tasks = np.repeat([0, 1], [900, 60])
    batches = draw("one_task_per_batch", tasks=tasks, batch_size=30, **EVEN)
    small = [frozenset(batch) for batch in batches if batch[0] >= 900]
    assert [len(a | b) for a, b in zip(small[::2], small[1::2], strict=True)] == [60] * 8
    assert len(set(small)) == 16


def test_each_rank_sees_all_tasks_alike():
    found = count_tasks(
        draw(world_size=2, rank=0, tasks=np.repeat([0, 1], 600)), [0] * 600 + [1] * 600
    )
    assert found[0] == pytest.approx(300, abs=60)


@pytest.mark.parametrize("batch_size", [6, 32, 59])
@MIXINGS
def test_no_query_comes_twice_in_a_batch_where_avoidable(mixing, batch_size):
    """Where a round ends within a batch, the next begins with queries that the batch lacks."""
    tasks = np.repeat([0, 1], [900, 61])
    batches = draw(mixing, tasks=tasks, batch_size=batch_size, **EVEN)
    assert max(count_tasks(batches, tasks)[1] / 61, 0) > 3  # rounds do end within batches
    assert all(len(set(batch)) == batch_size for batch in batches)


def test_a_batch_may_take_more_of_a_task_than_there_is():
    tasks = np.repeat([0, 1], [600, 4])
    batches = draw(tasks=tasks, batch_size=60, weights={1: 1e6})
    assert len(batches) == 10
    for batch in batches:  # 15 times each, in one batch
        assert set(Counter(i for i in batch if i >= 600).values()) <= {14, 15, 16}


def test_shares_follow_weight_size_and_temperature():
    sizes = {0: 100, 3: 10_000, 7: 500_000}
    for weights in ({}, {3: 5.0}, {0: 0.0, 7: 1e-3}):
        for temperature in (0.1, 1.0, 5.0):
            found = compute_task_shares(sizes, weights, temperature)
            expected = compute_shares(sizes, weights, temperature)
            assert found == pytest.approx({k: v for k, v in expected.items() if v > 0}, rel=1e-9)
    assert compute_task_shares(sizes, {}, 1e-3)[7] == pytest.approx(1.0)  # nothing overflows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"mixing_temperature is 0\.0, must be > 0"),
        ({"temperature": float("inf")}, r"mixing_temperature is inf"),
        ({"weights": {5: 1.0}}, r"task 5, .* of tasks \[0, 3, 7\] \(data\.task_weights\)"),
        ({"weights": {3: -1.0}}, r"weight of task 3 is -1\.0, must be >= 0"),
        ({"weights": {3: float("nan")}}, r"weight of task 3 is nan"),
        ({"weights": {0: 0.0, 3: 0.0, 7: 0.0}}, r"no task .* above 0 \(data\.task_weights\)"),
        ({"batch_size": 7, "world_size": 2}, r"contrastive_batch_size 7 is no multiple of 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("tasks", "mixing", "world_size"),
    [([1] * 5, "mixed", 1), ([1] * 11, "mixed", 2), ([1, 2] * 5, "one_task_per_batch", 1)],
)
def test_too_few_queries_for_a_batch_are_refused(tasks, mixing, world_size):
    size = 6 * world_size
    with pytest.raises(ValueError, match=f"{mixing}.* fill no global batch of {size} "):
        make(mixing, tasks=tasks, world_size=world_size, batch_size=size)


@MIXINGS
def test_an_epoch_of_a_million_queries_is_drawn_in_no_time(mixing):
    """As many as M-BEIR's up-sampled file has."""
    tasks = np.random.default_rng(0).choice(np.array([0, 1, 3, 4, 6, 8], np.int8), 1_330_000)
    start = time.perf_counter()
    for _ in make(mixing, tasks=tasks, batch_size=1024, temperature=3.0, weights={4: 9.0}):
        pass
    assert time.perf_counter() - start < 2
