"""Measures the engine against loops over transformers' own layers.

python experiments/bench/engine.py [--run RUN] [--shape 0.1b] [--dtype float32] [--device cpu]

Same weights, same queries, same outputs: before anything is timed, all thoughts must be equal and
embeddings within 1e-4 in float32. In bfloat16, which RGE evaluates in, each side rounds in its own
way, and 98 % of the thoughts must be equal. Prompts are tokenized and pictures cut before the clock
starts, on all sides. The sides take turns within a run; a ratio is of one run's times, and the
median over the runs counts.

- Against RGE's published loop: query by query `generate`, then one more step for the state. It is
  timed on queries spread evenly over the lengths of the thoughts.
- Against `generate` on padded batches that keeps hidden states, as UME-R1 does; its batches are as
  large as the engine's prefill, and sorted by prompt length as well.
- Against a plain loop that gates first and lets finished rows leave the cache, over the same
  batches (`compacted_ratio`): what refilling, shared prefixes and leaner layers add to that.
- `easy_fraction` and `mix_fraction` compare the engine with itself: queries that answer at once
  against never thinking, and the natural mix against the harmonic mix of the two pure rates;
  `mix_10_fraction` and `mix_50_fraction` are of mixes in which 10 and 50 % think. The pure rates
  are of whole sets. In a mix fewer think, and the last ones in small company; the `own_fraction`s
  are of rates of the mix's own two halves, each alone, and leave that out.
- `memory_ratio` is the peak of a whole process, ours over all thinking queries against plain
  `generate` on one padded batch of as many queries as we decode at once, medians of three processes
  each; `memory_growth_ratio` leaves out what a process held with the model loaded.

The queries are the test split of a fitted run: `hard` are those that the model itself thinks
about, `easy` the rest, and the natural mix has the split's own share of both. `--shape` takes text
queries and a Qwen2.5-VL of that size with random weights (see query_sources.py).
"""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from decode_loops import DecodeLoop
from engine_sides import EngineSides, compare_rates, spread
from jsonargparse import auto_cli
from peak_memory import measure_peak
from query_sources import (
    SHAPES,
    CountdownSource,
    DType,
    RunSource,
    find_thinking_run,
    join_prompts,
)
from report import Row, describe_device, make_row, print_rows, write_rows

from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate

_MEMORY_RUNS = 3  # processes of each side: what the C library keeps of freed memory varies

_LIMITS = {
    "generate_ratio": ">= 2",
    "easy_fraction": ">= 0.97",
    "mix_fraction": ">= 0.95",
    "mix_10_fraction": ">= 0.95",
    "mix_50_fraction": ">= 0.95",
    "memory_ratio": "<= 1.1",
}
_LIMITS_BY_SHAPE = {
    ("embedded", "think_all_ratio"): ">= 25",
    ("embedded", "natural_mix_ratio"): ">= 25",
    ("3b", "think_all_ratio"): ">= 20",
    ("3b", "natural_mix_ratio"): ">= 20",
}


def bench_engine(
    run: Path | None = None,
    runs_folder: Path = Path("runs"),
    shape: Literal["embedded", "0.1b", "3b", "7b"] = "embedded",
    num_queries: int = 2048,
    num_looped: int = 48,
    batch_size: int = 64,
    decode_batch_size: int = 512,
    dtype: DType = "bfloat16",
    device: str = "cpu",
    num_threads: int = 2,
    num_runs: int = 5,
) -> list[Row]:
    """Measure, print the rows and write them to engine-SHAPE-DEVICE-DTYPE.json.

    Args:
        run: Folder of the fitted run; default is the newest that was trained to think.
        runs_folder: Where runs are looked for.
        shape: `embedded` takes the run, the others a Qwen2.5-VL of random weights.
        num_queries: Queries of each set, handed to the engine at once; they repeat where the split
            has fewer. The default is what an evaluation of Scenes hands it (`data.eval_window`). Of
            fewer, the last thoughts are in smaller company, and mixes slower.
        num_looped: Queries of each set for the loop that takes them one by one.
        batch_size: Prompts read at once.
        decode_batch_size: Most queries that the engine decodes at the same time. The default is
            that of Scenes' recipes (`model.decode_batch_size`).
        dtype: Type of the weights.
        device: Where the model runs, e.g. `cuda`.
        num_threads: Threads of every side.
        num_runs: Runs of all sides, of whose ratios the medians count.
    """
    config = dict(locals())
    torch.set_num_threads(num_threads)
    source: RunSource | CountdownSource
    if shape == "embedded":
        source = RunSource(run or find_thinking_run(runs_folder), dtype, device)
    else:
        source = CountdownSource(SHAPES[shape], dtype, device, 2 * num_queries)
    sides = EngineSides(source.load(), batch_size, decode_batch_size, num_queries, num_looped)
    checked = sides.check_outputs() | sides.compare_bfloat16()
    runs = sides.time_sides(num_runs)
    values = take_medians([compare_rates(rates, sides.mixed_shares) for rates in runs])
    values |= compare_memory(source, sides, num_threads)
    rates = take_medians(runs)
    values |= {f"{name}_queries_per_second": rate for name, rate in rates.items()}
    values |= sides.describe_thoughts() | checked
    bench = "engine" if shape == "embedded" else f"engine-{shape}"
    rows = []
    for name, value in values.items():
        limit = _LIMITS.get(name) or _LIMITS_BY_SHAPE.get((shape, name), "")
        rows.append(make_row(bench, name, value, limit) | {"device": name_device(device)})
    print_rows(rows)
    write_rows(f"engine-{shape}-{torch.device(device).type}-{dtype}", rows, config)
    return rows


def take_medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each value over runs."""
    return {name: statistics.median(values[name] for values in runs) for name in runs[0]}


def name_device(device: str) -> str:
    """Return the name of the GPU, or of the CPU."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return describe_device()


def compare_memory(
    source: RunSource | CountdownSource, sides: EngineSides, num_threads: int
) -> dict[str, float]:
    """Return peaks of the engine over all hard queries and of plain `generate` on one batch."""
    chosen = [query.place for query in spread(sides.hard, sides.decode_batch_size)]
    places = list(dict.fromkeys(chosen + [query.place for query in sides.hard]))
    sizes = (sides.batch_size, sides.decode_batch_size)
    context = multiprocessing.get_context("spawn")
    measured: dict[str, list[tuple[float, float]]] = {"engine": [], "generate": []}
    for _ in range(_MEMORY_RUNS):
        for name, peaks in measured.items():
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as processes:
                task = processes.submit(measure_side, name, source, places, *sizes, num_threads)
                peaks.append(task.result())
    (engine_before, engine_peak), (generate_before, generate_peak) = (
        (statistics.median(before for before, _ in peaks), statistics.median(p for _, p in peaks))
        for peaks in measured.values()
    )
    return {
        "memory_ratio": engine_peak / generate_peak,
        "memory_growth_ratio": (engine_peak - engine_before) / (generate_peak - generate_before),
        "peak_mb": engine_peak / 1e6,
        "generate_peak_mb": generate_peak / 1e6,
        "growth_mb": (engine_peak - engine_before) / 1e6,
        "generate_growth_mb": (generate_peak - generate_before) / 1e6,
    }


def measure_side(
    name: str,
    source: RunSource | CountdownSource,
    places: list[int],
    batch_size: int,
    decode_batch_size: int,
    num_threads: int,
) -> tuple[float, float]:
    """Return the bytes that this process holds with the model loaded, and at its peak.

    Both sides hold every prompt once, so that only their work differs.

    Args:
        name: `engine` or `generate`.
        source: Model and queries, loaded here.
        places: Queries, all of which think; `generate` takes the first `decode_batch_size`.
        batch_size: Prompts that the engine reads at once.
        decode_batch_size: Most queries that the engine decodes at the same time.
        num_threads: Threads.
    """
    torch.set_num_threads(num_threads)
    loaded = source.load()
    prompts, pad = loaded.read_prompts(places), loaded.pad_token_id
    limit = loaded.max_rationale_tokens
    if name == "generate":
        batch = join_prompts(prompts[:decode_batch_size], pad)
        del prompts[:decode_batch_size]
        loop = DecodeLoop(loaded.encoder, limit, pad)
        return measure_peak(lambda: loop.write_thoughts(batch), source.device)
    prompts = sorted(prompts, key=lambda prompt: prompt.input_ids.shape[1])
    starts = range(0, len(prompts), batch_size)
    parts = [join_prompts(prompts[start : start + batch_size], pad) for start in starts]
    prompts.clear()
    engine = ReasoningEngine(loaded.encoder, loaded.router, limit, decode_batch_size)
    zeros = torch.zeros(len(places), dtype=torch.long)
    return measure_peak(
        lambda: engine.embed_queries(parts, AlwaysGate(), zeros.float(), zeros), source.device
    )


if __name__ == "__main__":
    auto_cli(bench_engine)
