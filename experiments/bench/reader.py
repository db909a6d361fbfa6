"""Measures the reader on a generated tree in M-BEIR's layout, without pictures.

python experiments/bench/reader.py [--num_candidates 1000000] [--num_queries 200000]
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jsonargparse import auto_cli
from report import Row, make_row, print_rows, write_rows

from tracelib.data.layout import CANONICAL_COLUMNS, DATASET_NAMES, Layout
from tracelib.data.mbeir import MBEIRReader
from tracelib.data.records import TASK_MODALITIES

_BENCH = "reader"
_LIMITS = {
    "first_open_seconds": "",
    "second_open_seconds": "<= 0.5",
    "index_bytes_per_row": "<= 16",
    "rows_per_second": ">= 150000",
    "query_rows_per_second": ">= 150000",
    "random_rows_per_second": ">= 10000",
    "worker_growth_mb": "<= 50",
}
_NUM_WORKERS = 3
_NUM_RANDOM_BATCHES = 500
_STEMS = ("bridge", "river", "stone", "card", "moon", "tram")
_WORDS = [f"{stem}{number}" for stem in _STEMS for number in range(40)]
_Result = TypeVar("_Result")


def bench_reader(
    num_candidates: int = 1_000_000, num_queries: int = 200_000, folder: Path | None = None
) -> list[Row]:
    """Generate a tree, measure, print the rows and write them to reader.json.

    Args:
        num_candidates: Candidates of all pools.
        num_queries: Test queries.
        folder: Folder for the tree, which stays; default is a temporary one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        generate_tree(root, num_candidates, num_queries)
        values = run_apart(measure_first_open, root)
        for measure in (measure_second_open, measure_rates, measure_workers):
            values |= run_apart(measure, root)
    rows = [make_row(_BENCH, name, values[name], limit) for name, limit in _LIMITS.items()]
    print_rows(rows)
    config = {"num_candidates": num_candidates, "num_queries": num_queries}
    write_rows(_BENCH, rows, config)
    return rows


def run_apart(measure: Callable[[Path], _Result], root: Path) -> _Result:
    """Return what a measurement finds in a process of its own, which has read nothing yet."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measure, root).result()


def generate_tree(root: Path, num_candidates: int, num_queries: int) -> None:
    """Write 16 columns of equal size, with texts as long as M-BEIR's and about two positives."""
    layout, rng = Layout(root), random.Random(0)
    columns = CANONICAL_COLUMNS
    numbers = dict.fromkeys(DATASET_NAMES, 0), dict.fromkeys(DATASET_NAMES, 0)
    for place, column in enumerate(columns):
        dataset, _, task = column.partition("_task")
        dataset_id = DATASET_NAMES.index(dataset)
        sizes = [
            total * (place + 1) // len(columns) - total * place // len(columns)
            for total in (num_candidates, num_queries)
        ]
        starts = [counts[dataset] + 1 for counts in numbers]
        for counts, size in zip(numbers, sizes, strict=True):
            counts[dataset] += size
        query_modality, candidate_modality = TASK_MODALITIES[int(task)]
        # Only the pools of their own test runs differ by split in MSCOCO.
        pool = layout.pool(column, "test" if dataset == "mscoco" else None)
        _make_parents(pool, layout.query(column, "test"), layout.qrels(column, "test"))
        with pool.open("w") as file:
            for number in range(starts[0], starts[0] + sizes[0]):
                has_text, has_image = (name in candidate_modality for name in ("text", "image"))
                row = {
                    "did": f"{dataset_id}:{number}",
                    "txt": write_text(rng, 60) if has_text else None,
                    "img_path": f"mbeir_images/{dataset}/{number}.jpg" if has_image else None,
                    "modality": candidate_modality,
                    "src_content": None,
                }
                file.write(json.dumps(row) + "\n")
        with (
            layout.query(column, "test").open("w") as file,
            layout.qrels(column, "test").open("w") as qrels,
        ):
            for number in range(starts[1], starts[1] + sizes[1]):
                name = f"{dataset_id}:{number}"
                positives = [
                    f"{dataset_id}:{starts[0] + rng.randrange(sizes[0])}"
                    for _ in range(rng.randint(1, 3))
                ]
                row = {
                    "qid": name,
                    "query_txt": write_text(rng, 12) if "text" in query_modality else None,
                    "query_img_path": f"mbeir_images/{dataset}/q{number}.jpg"
                    if "image" in query_modality
                    else None,
                    "query_modality": query_modality,
                    "query_src_content": None,
                    "pos_cand_list": positives,
                    "neg_cand_list": [],
                    "task_id": int(task),
                }
                file.write(json.dumps(row) + "\n")
                qrels.writelines(f"{name} 0 {positive} 1 {task}\n" for positive in positives)
    _make_parents(layout.instructions)
    lines = [
        "\t".join((*modalities, name, str(number), *(f"find {name} {i}" for i in range(4))))
        for number, name in enumerate(DATASET_NAMES)
        for modalities in TASK_MODALITIES.values()
    ]
    layout.instructions.write_text("\n".join(["header", *lines]) + "\n")


def measure_first_open(root: Path) -> dict[str, float]:
    """Convert everything and open it."""
    start = time.perf_counter()
    MBEIRReader(root).read_evaluation_set("test")
    return {"first_open_seconds": time.perf_counter() - start}


def measure_second_open(root: Path) -> dict[str, float]:
    """Open what is converted, and look an id up."""
    start = time.perf_counter()
    found = MBEIRReader(root).read_evaluation_set("test")
    wanted = found.queries[len(found.queries) // 2].positive_ids[0]
    dataset_id, number = map(int, wanted.split(":"))
    (place,) = found.candidates.find(np.array([dataset_id * 10_000_000 + number])).tolist()
    assert found.candidates[place].candidate_id == wanted
    seconds = time.perf_counter() - start
    index_bytes = sum(table.index.num_bytes for table in found.candidates.tables)
    return {
        "second_open_seconds": seconds,
        "index_bytes_per_row": index_bytes / len(found.candidates),
    }


def measure_rates(root: Path) -> dict[str, float]:
    """Iterate over all records; then look random ids up and make their records."""
    found = MBEIRReader(root).read_evaluation_set("test")
    rates = {}
    for name, records in (
        ("rows_per_second", found.candidates),
        ("query_rows_per_second", found.queries),
    ):
        start = time.perf_counter()
        num_characters = sum(len(record.text) for record in records)
        rates[name] = len(records) / (time.perf_counter() - start)
        assert num_characters > len(records)
    batches = _draw_batches(found.candidates.ids)
    start = time.perf_counter()
    num_rows = sum(len(found.candidates.take(found.candidates.find(ids))) for ids in batches)
    rates["random_rows_per_second"] = num_rows / (time.perf_counter() - start)
    return rates


def measure_workers(root: Path) -> dict[str, float]:
    """Fork workers that each read half of the rows; return the private memory of the largest."""
    found = MBEIRReader(root).read_evaluation_set("test")
    batches = np.array_split(np.arange(0, len(found.candidates), 2), 1000)
    context = multiprocessing.get_context("fork")
    done, sizes = context.Barrier(_NUM_WORKERS), context.SimpleQueue()

    def read_half() -> None:
        for places in batches:
            found.candidates.take(places)
        done.wait()
        sizes.put(_read_private_megabytes())
        done.wait()

    workers = [context.Process(target=read_half) for _ in range(_NUM_WORKERS)]
    for worker in workers:
        worker.start()
    largest = max(sizes.get() for _ in workers)
    for worker in workers:
        worker.join()
    return {"worker_growth_mb": largest}


def _read_private_megabytes() -> float:
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"Private_\w+:\s+(\d+) kB", text))) / 1024


def _draw_batches(ids: Any) -> list[Any]:
    """Return batches of 64 ids of a pool at random."""
    return list(np.random.default_rng(0).choice(ids, (_NUM_RANDOM_BATCHES, 64)))


def write_text(rng: random.Random, num_words: int) -> str:
    """Return a text of about so many words."""
    return " ".join(rng.choices(_WORDS, k=rng.randint(num_words // 2, num_words * 3 // 2)))


def _make_parents(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    auto_cli(bench_reader)
