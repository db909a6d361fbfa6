import random

import pytest

from tracelib.data.sampler import TaskBatchSampler

TASKS = random.Random(1).choices((0, 3, 7), k=101)


def draw(mixing="mixed", seed=0, epoch=0, rank=0, world_size=1, batch_size=6, tasks=TASKS):
    sampler = TaskBatchSampler(tasks, batch_size, mixing, seed, rank, world_size)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize("mixing", ["mixed", "one_task_per_batch"])
def test_order_depends_on_seed_and_epoch_alone(mixing):
    first = draw(mixing)
    random.seed(5)
    assert draw(mixing) == first
    others = [draw(mixing, epoch=1), draw(mixing, seed=1), draw(mixing, seed=1, epoch=1)]
    assert all(other != first for other in others)
    assert len({str(other) for other in others}) == 3


@pytest.mark.parametrize("mixing", ["mixed", "one_task_per_batch"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_out_the_global_batch(mixing, world_size):
    one = draw(mixing, batch_size=6)
    parts = [
        draw(mixing, batch_size=6 // world_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    joined = [[i for part in step for i in part] for step in zip(*parts, strict=True)]
    assert joined == one
    drawn = [i for batch in joined for i in batch]
    assert len(drawn) == len(set(drawn))


def test_mixed_uses_all_but_an_incomplete_batch():
    assert len(draw()) == len(TASKS) // 6
    assert any(len({TASKS[i] for i in batch}) > 1 for batch in draw())


def test_one_task_per_batch():
    batches = draw("one_task_per_batch")
    assert all(len({TASKS[i] for i in batch}) == 1 for batch in batches)
    assert len(batches) == sum(TASKS.count(task) // 6 for task in set(TASKS))
    order = [TASKS[batch[0]] for batch in batches]
    assert order != sorted(order)  # the tasks take turns


def test_every_query_is_drawn_over_the_epochs():
    drawn = {i for epoch in range(10) for batch in draw(epoch=epoch) for i in batch}
    assert drawn == set(range(len(TASKS)))


@pytest.mark.parametrize(
    ("tasks", "mixing", "world_size"),
    [([1] * 5, "mixed", 1), ([1] * 11, "mixed", 2), ([1, 2] * 5, "one_task_per_batch", 1)],
)
def test_too_few_queries_for_a_batch_are_refused(tasks, mixing, world_size):
    with pytest.raises(ValueError, match=f"{mixing}.* fill no global batch of {6 * world_size} "):
        draw(mixing, tasks=tasks, world_size=world_size)
