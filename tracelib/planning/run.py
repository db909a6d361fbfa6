"""The `plan` verb: what a recipe costs, worked out on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from rich.console import Console

from tracelib.models.cost import count_flops, estimate_memory
from tracelib.planning.gpus import GPUS
from tracelib.planning.measurement import measure_step, print_measurement
from tracelib.planning.report import Plan, print_plan
from tracelib.planning.step import assume_records, count_devices, measure_recipe, shape_step
from tracelib.recipe import RecipeReader, build_cli
from tracelib.retrieval.whole_files import write_whole

GPUName = Literal[
    "A100-40GB",
    "A100-80GB",
    "H100-80GB",
    "H200-141GB",
    "H20-96GB",
    "L40S-48GB",
    "RTX4090-24GB",
]


def plan(
    recipe: Path,
    overlay: Path | None = None,
    gpu: GPUName = "H100-80GB",
    num_gpus: int | None = None,
    query_tokens: int | None = None,
    candidate_tokens: int | None = None,
    image_tokens: int | None = None,
    rationale_tokens: int | None = None,
    query_images: float = 1.0,
    candidate_images: float = 1.0,
    num_queries: int | None = None,
    micro_batch_size: int | None = None,
    hours: float = 24.0,
    utilization: float = 0.35,
    measure: bool = False,
    json_file: Path | None = None,
) -> None:
    """Work out what a recipe costs: parameters, operations, memory, GPU-hours.

    Nothing is loaded and no network is needed: the recipe is parsed, unknown keys are refused, and
    its model is built without weights. What is not said of the records is taken at the recipe's
    limits, so that memory and time are upper bounds.

    Args:
        recipe: The recipe; `--config` says the same.
        overlay: A second file whose keys replace the recipe's.
        gpu: The device to train on.
        num_gpus: How many, >= 1; default are the recipe's.
        query_tokens: Text tokens of a query's prompt, >= 0; default is `data.max_text_tokens` and
            the template's words.
        candidate_tokens: Text tokens of a candidate's prompt, likewise.
        image_tokens: Tokens of a picture, >= 0; default is the recipe's limit or the backbone's.
        rationale_tokens: Tokens of a query's rationale, >= 0; default is
            `model.max_rationale_tokens`, 0 without rationales.
        query_images: Pictures per query, >= 0; a mean may be below 1.
        candidate_images: Pictures per candidate, likewise.
        num_queries: Training queries; default are the lines of the recipe's train query files, or
            those of M-BEIR-CoT where there are none.
        micro_batch_size: In place of the recipe's `data.micro_batch_size`, >= 1.
        hours: Hours in which the training is to be done, above 0.
        utilization: Share of the GPU's peak speed that is reached, above 0 and at most 1.
        measure: Also run one step of this shape with random weights, here, on a CUDA device if
            there is one, and print how far the plan is off.
        json_file: Where to write the numbers as JSON.

    Raises:
        ValueError: A number is out of its range, the GPUs cannot share a batch evenly, or the
            architecture of the backbone is not known here.
    """
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization is {utilization}, allowed above 0 .. 1 (--utilization)")
    for name, number in (("hours", hours), ("micro_batch_size", micro_batch_size)):
        if number is not None and number <= 0:
            raise ValueError(f"{name} is {number}, must be above 0 (--{name})")
    words = read_recipe_words(recipe, overlay)
    if micro_batch_size is not None:
        words.data.micro_batch_size = micro_batch_size
    given = {
        "query_tokens": query_tokens,
        "candidate_tokens": candidate_tokens,
        "image_tokens": image_tokens,
        "rationale_tokens": rationale_tokens,
        "query_images": query_images,
        "candidate_images": candidate_images,
        "num_queries": num_queries,
    }
    records = assume_records(words, given)
    devices = count_devices(words.trainer) if num_gpus is None else num_gpus
    step = shape_step(words, records, devices)
    model = measure_recipe(words.model)
    num_epochs = words.trainer.max_epochs or 1
    num_steps = num_epochs * (records.num_queries // words.data.contrastive_batch_size)
    max_steps = words.trainer.max_steps
    found = Plan(
        recipe=str(recipe),
        model=model,
        records=records,
        step=step,
        flops=count_flops(model, step),
        memory=estimate_memory(model, step, devices, count_shards(words.trainer, devices)),
        gpu_name=gpu,
        gpu=GPUS[gpu],
        num_gpus=devices,
        num_epochs=num_epochs,
        num_steps=num_steps if max_steps < 0 else min(num_steps, max_steps),
        hours=hours,
        utilization=utilization,
    )
    console = Console()
    print_plan(console, found)
    content = found.to_json()
    if measure:
        measured = measure_step(words.model, model, step)
        print_measurement(console, measured)
        content["measured"] = measured.to_json()
    if json_file is not None:
        write_whole(json_file, json.dumps(content, indent=1) + "\n")


def read_recipe_words(recipe: Path, overlay: Path | None = None) -> Namespace:
    """Return a recipe as it is written, its defaults filled in; nothing is built."""
    files = [recipe] if overlay is None else [recipe, overlay]
    args = [word for file in files for word in ("--config", str(file))]
    words: Namespace = build_cli(args, run=False, kind=RecipeReader).config
    return words


def count_shards(trainer: Namespace, num_devices: int) -> int:
    """Return how many devices share weights, gradients and optimizer states.

    Lightning's `FSDPStrategy` shares over all, its `ModelParallelStrategy` over those of a node.
    """
    strategy = trainer.strategy
    name = strategy if isinstance(strategy, str) else strategy.class_path
    if name.endswith("ModelParallelStrategy"):
        return max(1, num_devices // int(trainer.num_nodes))
    return num_devices if "fsdp" in name.lower() else 1
