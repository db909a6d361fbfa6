"""Measures RGE's training step against TRACE's, over the same queries and thoughts as long.

python experiments/bench/rge.py [--batch_size 96]

All queries have a rationale. RGE learns to write it as TRACE does, but reads the embedding after a
thought of its own. `step_time_ratio` is of steps in which the model writes all of these anew,
`cached_step_time_ratio` of steps that find all of them written. An untrained model does not stop by
itself, so its thoughts are cut to the mean length of the rationales. A step is forward, backward,
clipping and optimizer; the sides take turns, and medians are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from recipe_steps import RecipeStep, build_recipe, pick_places, time_in_turns
from report import Row, make_row, print_rows, write_rows

from tracelib.types import IGNORED_LABEL, TrainBatch

_LIMITS = {"step_time_ratio": "<= 2.5", "cached_step_time_ratio": "<= 1.6"}
_KEPT_STEPS = 1_000_000  # more than any bench takes


def bench_rge(
    rge_config: Path = Path("configs/rge_scenes.yaml"),
    trace_config: Path = Path("configs/trace_scenes.yaml"),
    root: Path = Path("data/scenes"),
    batch_size: int = 96,
    num_threads: int = 2,
    num_runs: int = 5,
) -> list[Row]:
    """Measure, print the rows and write them to rge.json.

    Args:
        rge_config: The recipe with thoughts of the model's own.
        trace_config: The recipe with annotated ones.
        root: Data root in place of the recipes'.
        batch_size: Queries of a step, all of which think; one batch of each task that has as many.
        num_threads: Threads.
        num_runs: Runs of each side, of which the median counts.
    """
    options = dict(locals())
    torch.set_num_threads(num_threads)
    values = compare_steps(rge_config, trace_config, root, batch_size, num_runs)
    rows = [make_row("rge", name, value, _LIMITS.get(name, "")) for name, value in values.items()]
    print_rows(rows)
    write_rows("rge", rows, options)
    return rows


def compare_steps(
    rge_config: Path, trace_config: Path, root: Path, batch_size: int, num_runs: int
) -> dict[str, float]:
    """Return ratios of step times, and the lengths of what is thought.

    Raises:
        ValueError: The model's thoughts are not as long as the rationales.
    """
    shared = {"data.root": root, "data.num_workers": 0, "data.contrastive_batch_size": batch_size}
    module, data = build_recipe(trace_config, shared)
    queries = data.train_dataset.queries
    places = pick_places(queries.task_ids, batch_size, queries.rationale_sources >= 0)
    trace_batches = [data.train_dataset[chosen] for chosen in places]
    lengths = torch.cat([count_thought_tokens(batch) for batch in trace_batches])
    own = shared | {"model.rollout.max_tokens": round(lengths.float().mean().item())}
    steps = {"trace": RecipeStep(module)}
    for name, refresh_steps in (("fresh", 0), ("cached", _KEPT_STEPS)):
        own["model.rollout.refresh_steps"] = refresh_steps
        rge_module, rge_data = build_recipe(rge_config, own)
        steps[name] = RecipeStep(rge_module)
    sums, written_lengths = dict.fromkeys(steps, 0.0), list[int]()
    for chosen, trace_batch in zip(places, trace_batches, strict=True):
        rge_batch = rge_data.train_dataset[chosen]
        written_lengths += count_thought_tokens(rge_batch).tolist()
        batches = {"trace": trace_batch, "fresh": rge_batch, "cached": rge_batch}
        sides = {n: lambda s=s, b=batches[n]: s.take(b) for n, s in steps.items()}  # type: ignore[misc]
        for name, seconds in time_in_turns(sides, num_runs).items():
            sums[name] += seconds
    values: dict[str, Any] = {
        "step_time_ratio": sums["fresh"] / sums["trace"],
        "cached_step_time_ratio": sums["cached"] / sums["trace"],
    }
    values |= {f"{name}_step_seconds": total / len(places) for name, total in sums.items()}
    values["lm_text_tokens"] = sum(written_lengths) / len(written_lengths)
    values["rationale_tokens"] = lengths.float().mean().item()
    own_thoughts = steps["cached"].module.own_thoughts
    assert own_thoughts is not None
    written = own_thoughts.store.read(torch.cat([batch.query_ids for batch in trace_batches]))
    values["thought_tokens"] = (written >= 0).sum(1).float().mean().item()
    if abs(values["thought_tokens"] - values["rationale_tokens"]) > 1:
        raise ValueError(f"the model's thoughts have another length than the rationales: {values}")
    return values


def count_thought_tokens(batch: TrainBatch) -> torch.Tensor:
    """Return `[B]` the length of each query's rationale, its embedding token apart."""
    return torch.cat([(chunk.labels != IGNORED_LABEL).sum(1) - 1 for chunk in batch.query])


if __name__ == "__main__":
    auto_cli(bench_rge)
