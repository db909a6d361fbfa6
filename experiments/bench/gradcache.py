"""Measures training steps with cached gradients against steps that hold a whole batch.

python experiments/bench/gradcache.py [--batch_size 256] [--micro_batch_size 32]

- `step_time_ratio`: a whole step (forward, backward, clipping, optimizer) in micro-batches by one
  that holds all activations, over the same queries, one batch of each task. Loss and gradients must
  agree within 1e-5 before a time counts; the sides take turns, and medians are compared.
- `memory_ratio`: peak of a whole process that takes such steps at a large contrastive batch, by one
  at a small batch with the same micro-batches; `memory_growth_ratio` leaves out what each process
  held with the model loaded, and `plain_memory_ratio` has the small batch's be held whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from peak_memory import measure_peak
from recipe_steps import RecipeStep, build_recipe, pick_places, run_alone, time_in_turns
from report import Row, make_row, print_rows, write_rows

_LIMITS = {"step_time_ratio": "<= 1.4", "memory_ratio": "<= 1.25"}


def bench_gradcache(
    config: Path = Path("configs/trace_scenes.yaml"),
    root: Path = Path("data/scenes"),
    batch_size: int = 256,
    micro_batch_size: int = 32,
    small_batch_size: int = 64,
    large_batch_size: int = 1024,
    num_threads: int = 2,
    num_runs: int = 5,
) -> list[Row]:
    """Measure, print the rows and write them to gradcache.json.

    Args:
        config: The recipe.
        root: Data root in place of the recipe's.
        batch_size: Contrastive batch of the steps that are timed.
        micro_batch_size: Most sequences encoded at once with cached gradients.
        small_batch_size: The smaller contrastive batch of the steps whose memory is measured.
        large_batch_size: The larger one.
        num_threads: Threads.
        num_runs: Runs of each side, of which the median counts.
    """
    options = dict(locals())
    torch.set_num_threads(num_threads)
    values = compare_steps(config, root, batch_size, micro_batch_size, num_runs)
    values |= compare_memory(
        config, root, (small_batch_size, large_batch_size), micro_batch_size, num_threads
    )
    rows = [make_row("gradcache", k, v, _LIMITS.get(k, "")) for k, v in values.items()]
    print_rows(rows)
    write_rows("gradcache", rows, options)
    return rows


def set_batch(root: Path, batch_size: int, micro_batch_size: int | None) -> dict[str, Any]:
    """Return the settings of steps over a contrastive batch, cached if there is a micro-batch."""
    return {
        "data.root": root,
        "data.num_workers": 0,
        "data.contrastive_batch_size": batch_size,
        "data.micro_batch_size": "null" if micro_batch_size is None else micro_batch_size,
        "data.micro_batch_tokens": "null",
    }


def compare_steps(
    config: Path, root: Path, batch_size: int, micro_batch_size: int, num_runs: int
) -> dict[str, float]:
    """Return the ratio of step times, and what it is made of, over one batch of each task."""
    module, data = build_recipe(config, set_batch(root, batch_size, None))
    _, cached_data = build_recipe(config, set_batch(root, batch_size, micro_batch_size))
    step = RecipeStep(module)
    sums = dict.fromkeys(("plain", "cached"), 0.0)
    differences: dict[str, list[float]] = {}
    places = pick_places(data.train_dataset.queries.task_ids, batch_size)
    for chosen in places:
        plain, cached = data.train_dataset[chosen], cached_data.train_dataset[chosen]
        for name, value in step.compare(plain, cached).items():
            differences.setdefault(name, []).append(value)
        sides = {"plain": lambda b=plain: step.take(b), "cached": lambda b=cached: step.take(b)}  # type: ignore[misc]
        for name, seconds in time_in_turns(sides, num_runs).items():
            sums[name] += seconds
    values = {"step_time_ratio": sums["cached"] / sums["plain"]}
    values |= {f"{name}_step_seconds": total / len(places) for name, total in sums.items()}
    return values | {f"worst_{name}": max(found) for name, found in differences.items()}


def compare_memory(
    config: Path, root: Path, batch_sizes: tuple[int, int], micro_batch_size: int, num_threads: int
) -> dict[str, float]:
    """Return peaks of processes that train with cached gradients at a small and a large batch."""
    small_size, large_size = batch_sizes
    held, small = run_alone(measure_steps, config, root, small_size, micro_batch_size, num_threads)
    large_held, large = run_alone(
        measure_steps, config, root, large_size, micro_batch_size, num_threads
    )
    _, plain = run_alone(measure_steps, config, root, small_size, None, num_threads)
    return {
        "memory_ratio": large / small,
        "memory_growth_ratio": (large - large_held) / (small - held),
        "plain_memory_ratio": large / plain,
        f"peak_mb_at_{small_size}": small / 1e6,
        f"peak_mb_at_{large_size}": large / 1e6,
        f"plain_peak_mb_at_{small_size}": plain / 1e6,
        "held_mb": held / 1e6,
    }


def measure_steps(
    config: Path, root: Path, batch_size: int, micro_batch_size: int | None, num_threads: int
) -> tuple[float, float]:
    """Return the bytes held with the model loaded, and at the peak of a step on each task.

    Args:
        config: The recipe.
        root: Data root.
        batch_size: Contrastive batch.
        micro_batch_size: Most sequences encoded at once; None holds the whole batch.
        num_threads: Threads.
    """
    torch.set_num_threads(num_threads)
    module, data = build_recipe(config, set_batch(root, batch_size, micro_batch_size))
    step, dataset = RecipeStep(module), data.train_dataset
    places = pick_places(dataset.queries.task_ids, batch_size)
    return measure_peak(lambda: [step.take(dataset[chosen]) for chosen in places], "cpu")


if __name__ == "__main__":
    auto_cli(bench_gradcache)
