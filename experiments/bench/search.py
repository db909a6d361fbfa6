"""Measures exact search against FAISS's flat inner product, on a memory-mapped float16 pool.

python experiments/bench/search.py [--num_candidates 1000000] [--num_queries 1000]

Candidates and queries scatter around 2,000 random centres, as widely as the centres do, so that
the top 50 lie within a cluster, at cosines near 0.6. Ours reads the file, float16 and of any
length, and is timed whole. Of FAISS only the search is timed, over unit float32 vectors it was
given before. Both run in turn, with the same number of threads; medians are compared.
`from_file_ratio` is the job from the file for both: FAISS's vectors, made and added, count too.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
import torch
from jsonargparse import auto_cli
from report import Row, make_row, print_rows, write_rows
from torch import Tensor
from torch.nn import functional

from tracelib.retrieval.search import TopKSearch

_BENCH = "search"
_LIMITS = {
    "seconds": "",
    "faiss_seconds": "",
    "faiss_from_file_seconds": "",
    "time_ratio": "<= 0.25",
    "from_file_ratio": "",
    "peak_gb": "<= 1.0",
    "equal_rankings": ">= 1",
}
_NUM_CENTRES = 2000
_WRITTEN_ROWS = 50_000
_NUM_SAMPLES = 20
_MAX_SWAP = 1e-6
_Result = TypeVar("_Result")


def bench_search(
    num_candidates: int = 1_000_000,
    num_queries: int = 1000,
    num_dimensions: int = 768,
    k: int = 50,
    chunk_size: int = 1_000_000,
    num_threads: int = 2,
    num_runs: int = 5,
) -> list[Row]:
    """Generate a pool, measure, print the rows and write them to search.json.

    Args:
        num_candidates: Candidates in the pool.
        num_queries: Queries.
        num_dimensions: Size of an embedding.
        k: Candidates to find per query.
        chunk_size: Candidates handed to our search at once, by default all: they are mapped.
        num_threads: Threads of either side.
        num_runs: Runs of either side, of which the median counts.
    """
    config = dict(locals())
    torch.set_num_threads(num_threads)
    faiss.omp_set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.npy"
        queries = write_pool(path, num_candidates, num_queries, num_dimensions)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as processes:
            task = processes.submit(measure_peak, path, queries.numpy(), k, chunk_size, num_threads)
            values = {"peak_gb": task.result()}
        values |= compare_with_faiss(path, queries, k, chunk_size, num_runs)
    rows = [make_row(_BENCH, name, values[name], limit) for name, limit in _LIMITS.items()]
    print_rows(rows)
    write_rows(_BENCH, rows, config)
    return rows


def write_pool(path: Path, num_candidates: int, num_queries: int, num_dimensions: int) -> Tensor:
    """Write `[C, D]` float16 candidates; return `[Q, D]` queries."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(_NUM_CENTRES, num_dimensions, generator=random)

    def draw(num_rows: int) -> Tensor:
        members = torch.randint(_NUM_CENTRES, (num_rows,), generator=random)
        return centres[members] + torch.randn(num_rows, num_dimensions, generator=random)

    pool = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float16, shape=(num_candidates, num_dimensions)
    )
    for start in range(0, num_candidates, _WRITTEN_ROWS):
        stop = min(start + _WRITTEN_ROWS, num_candidates)
        pool[start:stop] = draw(stop - start).half().numpy()
    pool.flush()
    return draw(num_queries)


def read_chunks(path: Path, chunk_size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield first place and rows of each chunk, mapped, not read."""
    pool = np.load(path, mmap_mode="c")  # copy on write: torch has no read-only tensors
    for start in range(0, len(pool), chunk_size):
        yield start, torch.from_numpy(pool[start : start + chunk_size])


def search_pool(path: Path, queries: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return scores and places of our search."""
    search = TopKSearch(queries, k)
    for first_place, rows in read_chunks(path, chunk_size):
        search.add(rows, first_place)
    return search.result()


def measure_peak(
    path: Path, queries: np.ndarray, k: int, chunk_size: int, num_threads: int
) -> float:
    """Return the most memory of a process that only searches, in GB, but for mapped files.

    It is all the process's own memory, Python and torch included, looked at every few milliseconds:
    the kernel's own peak would count the pages of the mapped pool.
    """
    torch.set_num_threads(num_threads)
    is_done = threading.Event()
    seen = [0]

    def watch() -> None:
        status = Path("/proc/self/status")
        while not is_done.wait(0.003):
            seen.append(int(re.search(r"RssAnon:\s+(\d+)", status.read_text())[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    search_pool(path, torch.from_numpy(queries), k, chunk_size)
    is_done.set()
    watcher.join()
    return max(seen) * 1024 / 1e9


def compare_with_faiss(
    path: Path, queries: Tensor, k: int, chunk_size: int, num_runs: int
) -> dict[str, float]:
    """Return the seconds of both, their ratio, and the share of sampled rankings that are right."""
    index = faiss.IndexFlatIP(queries.shape[1])
    unit_queries = functional.normalize(queries).numpy()

    def build_index() -> None:
        index.reset()
        for _, rows in read_chunks(path, _WRITTEN_ROWS):
            index.add(functional.normalize(rows.float()).numpy())

    ours, builds, searches = [], [], []
    for _ in range(num_runs):
        seconds, found = time_call(lambda: search_pool(path, queries, k, chunk_size))
        ours.append(seconds)
        builds.append(time_call(build_index)[0])
        searches.append(time_call(lambda: index.search(unit_queries, k))[0])
    seconds, faiss_seconds = statistics.median(ours), statistics.median(searches)
    from_file_seconds = statistics.median(map(sum, zip(builds, searches, strict=True)))
    return {
        "seconds": seconds,
        "faiss_seconds": faiss_seconds,
        "faiss_from_file_seconds": from_file_seconds,
        "time_ratio": seconds / faiss_seconds,
        "from_file_ratio": seconds / from_file_seconds,
        "equal_rankings": compare_rankings(path, queries, found[1], k),
    }


def time_call(call: Callable[[], _Result]) -> tuple[float, _Result]:
    """Return the seconds of a call and its result, once threads of the last one are idle."""
    time.sleep(1)
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def compare_rankings(path: Path, queries: Tensor, places: Tensor, k: int) -> float:
    """Return the share of sampled queries that are ranked as float64 does.

    Scores within 1e-6 may change places: at every rank, the score is that of the reference.
    """
    sample = torch.linspace(0, len(queries) - 1, min(_NUM_SAMPLES, len(queries))).long()
    units = functional.normalize(queries[sample].double())
    chunks = read_chunks(path, _WRITTEN_ROWS)
    scores = torch.cat([units @ functional.normalize(rows.double()).T for _, rows in chunks], dim=1)
    expected = scores.topk(k, dim=1).values
    found = places[sample]
    is_equal = ((scores.gather(1, found) - expected).abs() <= _MAX_SWAP).all(dim=1)
    is_distinct = torch.tensor([len(set(row)) == k for row in found.tolist()])
    return (is_equal & is_distinct).double().mean().item()


if __name__ == "__main__":
    auto_cli(bench_search)
