"""Workers are not forked from a process with threads, and end with the one that reads them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.workers import follow_parent, get_worker_context

REPOSITORY = Path(__file__).parents[2]
LOCK = threading.Lock()


class LockedNumbers(Dataset):
    """Numbers that take a lock to read, as allocators, loggers and the interpreter have them."""

    def __len__(self):
        return 2

    def __getitem__(self, place):
        with LOCK:
            return place


class Seeds(Dataset):
    """The seed that a worker has."""

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return torch.initial_seed()


def load(dataset, num_workers=1, **options):
    defaults = {
        "multiprocessing_context": get_worker_context(num_workers),
        "worker_init_fn": follow_parent,
    }
    return DataLoader(dataset, None, num_workers=num_workers, **(defaults | options))


@pytest.fixture
def busy_threads():
    """Threads one of which always holds the lock."""
    is_over = threading.Event()

    def take_turns():
        while not is_over.is_set():
            with LOCK:
                time.sleep(0.001)

    threads = [threading.Thread(target=take_turns) for _ in range(8)]
    for thread in threads:
        thread.start()
    yield
    is_over.set()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("busy_threads")
def test_workers_start_beside_threads_that_hold_locks():
    for _ in range(10):
        assert list(load(LockedNumbers(), timeout=30)) == [0, 1]


@pytest.mark.usefixtures("busy_threads")
def test_a_forked_worker_would_wait_for_such_a_lock():
    """The control: what the loader did before."""
    forked = load(LockedNumbers(), timeout=1, multiprocessing_context="fork", worker_init_fn=None)
    with LOCK, pytest.raises(RuntimeError, match="timed out"):
        next(iter(forked))


def test_no_workers_need_no_context():
    assert get_worker_context(0) is None
    assert get_worker_context(2).get_start_method() == "forkserver"


def test_worker_seeds_come_from_the_random_state():
    torch.manual_seed(7)
    base = torch.empty((), dtype=torch.int64).random_().item()
    torch.manual_seed(7)
    assert list(load(Seeds(), num_workers=2)) == [base, base + 1, base, base + 1]


def test_the_data_are_the_same_from_workers(tiny_scenes, tiny_backbone):
    found = []
    for num_workers in (0, 2):
        data = MBEIRDataModule(
            tiny_scenes, str(tiny_backbone), num_workers=num_workers, contrastive_batch_size=16
        )
        data.setup("fit")
        loaders = data.train_dataloader(), *data.build_evaluation_loaders("val", [[0, 3]], [[2, 1]])
        found.append([list(loader) for loader in loaders])
    assert len(flatten(found[0])) > 100
    torch.testing.assert_close(flatten(found[0]), flatten(found[1]), rtol=0, atol=0)


def flatten(value):
    """Return the tensors of batches in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in flatten(part)]
    return flatten(list(vars(value).values())) if hasattr(value, "__dict__") else []


SCRIPT = """
import signal, sys
from multiprocessing import forkserver
from torch.utils.data import DataLoader
from tracelib.data.workers import follow_parent, get_worker_context
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    context = get_worker_context(2)
    loader = DataLoader(
        range(1000), num_workers=2, multiprocessing_context=context, worker_init_fn=follow_parent
    )
    batches = iter(loader)
    print(*(w.pid for w in batches._workers), forkserver._forkserver._forkserver_pid, flush=True)
    for word in sys.stdin:
        print(sum(len(next(batches)) for _ in range(100)), flush=True)
"""


def test_workers_outlive_a_stop_of_all_and_end_with_their_parent(tmp_path):
    (tmp_path / "read.py").write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "read.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    with parent:
        pids = parent.stdout.readline().split()
        assert len(pids) == 3
        for _ in range(2):
            os.killpg(parent.pid, signal.SIGTERM)  # right after the start, and once all run
            parent.stdin.write("read\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "100\n"
        parent.kill()
    limit = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < limit, "processes are left"
        time.sleep(0.05)


def is_running(pid):
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_dies_is_noticed():
    batches = iter(load(range(1000), timeout=1))
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(batches)


def test_a_worker_ends_at_its_parents_word_alone():
    batches = iter(load(range(1000)))
    next(batches)
    (worker,) = batches._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0
    batches._shutdown_workers()
