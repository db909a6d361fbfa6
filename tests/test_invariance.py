"""The numbers of a `test` depend on the model and the records, not on how it was run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_recipe
from tracelib.cli import main
from tracelib.retrieval.runs import read_results

REPOSITORY = Path(__file__).parents[1]
EVALUATION = "tracelib.callbacks.retrieval_evaluation.RetrievalEvaluation"


def read_rows(folder):
    (path,) = folder.glob("tiny/version_0/evaluation/always/results.json")
    rows, _ = read_results(path)
    values = {(r.column, r.pool, r.subset, r.metric): r.value for r in rows}
    del values["all", "local", "all", "queries_per_second"]
    return values


@pytest.fixture(scope="module")
def test_split(tiny_scenes, tiny_backbone, tmp_path_factory):
    """Run `test` in a store of its own; return its numbers, all but the speed."""

    def run(batch_size, chunk_size, num_processes=1):
        folder = tmp_path_factory.mktemp("test")
        callback = {"class_path": EVALUATION, "init_args": {"search_chunk_size": chunk_size}}
        args = [
            *("test", *write_recipe(folder, tiny_scenes, tiny_backbone)),
            f"--data.eval_batch_size={batch_size}",
            f"--trainer.callbacks={json.dumps([callback])}",
        ]
        if num_processes == 1:
            main(args)
        else:
            settings = ["--trainer.strategy=ddp", f"--trainer.devices={num_processes}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "tracelib", *args, *settings]
            with (folder / "log.txt").open("w") as log:  # a pipe would outlive a killed process
                done = subprocess.run(
                    command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, timeout=240
                )
            assert done.returncode == 0, (folder / "log.txt").read_text()
        return read_rows(folder)

    return run


@pytest.fixture(scope="module")
def expected(test_split):
    return test_split(64, 10_000)


def test_there_is_something_to_get_wrong(expected):
    recalls = [value for key, value in expected.items() if key[3].startswith("recall@")]
    assert len(recalls) > 200
    assert sum(0 < value < 1 for value in recalls) > 20


@pytest.mark.parametrize(
    ("batch_size", "chunk_size", "num_processes"),
    [
        (7, 100, 2),
        *(
            pytest.param(*sizes, marks=pytest.mark.slow)
            for sizes in ((7, 100, 1), (64, 100, 2), (7, 10_000, 2))
        ),
    ],
)
def test_numbers_do_not_depend_on_batches_chunks_or_processes(
    test_split, expected, batch_size, chunk_size, num_processes
):
    assert test_split(batch_size, chunk_size, num_processes) == expected
