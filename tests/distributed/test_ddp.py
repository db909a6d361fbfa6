"""Two processes are one: the same gradients, the same training, the same validation."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.distributed import worker
from tests.tiny import build, cut_scenes, read_metrics, write_recipe
from tracelib.cli import main
from tracelib.data.sampler import TaskBatchSampler

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
DDP = [
    "--trainer.strategy=ddp",
    "--trainer.devices=2",
    "--data.contrastive_batch_size=4",
    "--data.eval_batch_size=100",  # all queries fit into one batch, and there are two ranks
]
SEED = 10
"""With it, rank 0 has no picture in a batch where rank 1 has some."""
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    root = cut_scenes(tiny_scenes, tmp_path_factory.mktemp("distributed") / "scenes")
    worker.impoverish(root)
    return root


@pytest.fixture(scope="module")
def args(root, tiny_backbone, tmp_path_factory):
    args = write_recipe(tmp_path_factory.mktemp("recipe"), root, tiny_backbone)
    return [*args, "--data.num_hard_negatives=1", "--model.router_stop_gradient=false"]


@pytest.fixture(scope="module")
def ranks(args, tmp_path_factory):
    """What the two processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.spawn(worker.run, (args, folder), worker.WORLD_SIZE, join=False)
    deadline = time.monotonic() + 240
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail("the two processes wait for each other")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def single(args):
    """Loss, gradients and task counts of one process that holds the global batch."""
    module, data, rows = worker.make(args)
    chunks = [data.train_dataset[part] for part in rows]
    assert all(part.pixel_values is None for part in [*chunks[0].query, *chunks[0].candidate])
    assert all(part.pixel_values is not None for part in chunks[1].candidate)
    assert len(chunks[0].candidate_ids) < len(chunks[1].candidate_ids)
    batch, found = data.train_dataset[rows[0] + rows[1]], {}
    for name, weights in worker.WEIGHTS.items():
        module.joint_step.weights = weights
        module.zero_grad()
        loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        found[name] = loss.item(), worker.copy_gradients(module)
    return found, module.task_counts


def compare(gradients, expected):
    difference = max((gradients[n] - expected[n]).abs().max() for n in expected)
    return float(difference / max(g.abs().max() for g in expected.values()))


@pytest.mark.parametrize("is_cached", [False, True], ids=["plain", "cached"])
@pytest.mark.parametrize("name", worker.WEIGHTS)
def test_gradients_are_those_of_one_process_with_the_global_batch(ranks, single, name, is_cached):
    loss, expected = single[0][name]
    for rank in ranks:
        found = rank[f"{name} {is_cached}"]
        assert set(found) == set(expected)
        assert compare(found, expected) < 1e-5
        assert rank[f"{name} {is_cached} loss"].item() == pytest.approx(loss, rel=1e-5)
    if name == "joint":
        assert min(g.abs().max() for g in expected.values()) > 0


def test_a_loss_scaled_by_the_world_size_is_wrong(ranks, single):
    """The negative control."""
    assert compare(ranks[0]["scaled"], single[0]["joint"][1]) == pytest.approx(1, rel=1e-3)


def test_every_rank_counts_the_tasks_of_all(ranks, single):
    for rank in ranks:
        num_steps = 2 * len(worker.WEIGHTS) + 1
        assert torch.equal(rank["task_counts"] * len(worker.WEIGHTS), num_steps * single[1])
    assert single[1].sum() == len(worker.WEIGHTS) * (worker.NUM_ROWS + 1)


def test_a_rank_whose_share_is_constant_does_not_stop_alone(ranks):
    for rank in ranks:
        assert rank["ranked"].tolist() == [[0, 1, 3], [2, 3, 0]]
        assert "all 4 candidate embeddings of a_task0 are the same" in rank["refused"]


def test_training_batches_of_both_ranks_make_up_the_global_batch(ranks, args):
    sampler = build(args)[1].build_train_sampler()
    pairs = zip(*(rank["batches"] for rank in ranks), strict=True)
    assert [a + b for a, b in pairs] == list(sampler)


def test_gathering_takes_ranks_of_different_length(ranks):
    """Each rank's loss has factor (rank + 1), so the gradient of row i is (1 + 2) i."""
    for number, rank in enumerate(ranks):
        gathered, gradient, plain, rows = rank["gathered"]
        assert gathered.tolist() == plain.tolist() == [0, 0, 1]
        assert gradient.tolist() == ([0.0] if number == 0 else [3.0, 6.0])
        assert rows == [0, 1]


def test_a_real_fit_of_two_processes_is_that_of_one(root, tiny_backbone, tmp_path):
    """Losses of every step, and validation, which one process repeats from the checkpoint."""
    runs, arguments = {}, {}
    for name, settings in (
        ("two", DDP),
        ("one", ["--data.contrastive_batch_size=4"]),
    ):
        arguments[name] = write_recipe(tmp_path / name, root, tiny_backbone)
        runs[name] = tmp_path / name / "tiny"
        arguments[name] += [*settings, f"--seed_everything={SEED}"]
    log = tmp_path / "log.txt"
    with log.open("w") as file:  # a pipe would outlive a killed process in its children
        done = subprocess.run(
            [sys.executable, "-m", "tracelib", "fit", *arguments["two"]],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, log.read_text()
    main(["fit", *arguments["one"]])
    two, one = (read_metrics(runs[name] / "version_0") for name in ("two", "one"))
    assert set(two) == set(one)
    assert len(two["train/loss"]) == 6
    for name in two:
        if name.startswith("train/"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
    checkpoint = runs["two"] / "version_0" / "checkpoints" / "last.ckpt"
    main(["validate", *arguments["one"], f"--ckpt_path={checkpoint}"])
    again = read_metrics(runs["one"] / "version_1")
    names = {name for name in again if "recall" in name or "think_rate" in name}
    assert len(names) > 40
    assert {name: again[name] for name in names} == {name: two[name][-1:] for name in names}


def test_in_that_fit_a_rank_has_a_batch_without_pictures(root, tiny_backbone, tmp_path):
    """What the test above rests on."""
    data = build(write_recipe(tmp_path, root, tiny_backbone))[1].train_dataset
    tasks = [q.task_id for q in data.queries]
    drawn = [list(TaskBatchSampler(tasks, 4, "mixed", SEED, rank, 2))[:3] for rank in (0, 1)]
    batches = [data[rows] for part in drawn for rows in part]
    pictures = [
        any(inputs.pixel_values is not None for inputs in [*batch.query, *batch.candidate])
        for batch in batches
    ]
    assert (False, True) in list(zip(pictures[:3], pictures[3:], strict=True))
