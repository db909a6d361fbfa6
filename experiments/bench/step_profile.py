"""Says where a training step's time goes, and what bounds it.

python experiments/bench/step_profile.py [--micro_batch_size 32] [--shape 3b --device cuda]

Shares of the time of a step of the TRACE recipe on Scenes, its own loader included: `loading`, the
wait for the next batch; `vision`, the tower and its projector; `language_model`;
`heads_and_losses`, all from its last states to the loss; `optimizer`, clipping included; and
`rest`. Each counts forward and backward. `vision_passes` is how often a block of the frozen vision
tower reads a picture in a step, and must be 1. `flop_share` is how much of the speed of a large
matrix product the step's own products reach, over the time of language model, vision and heads:
near 1 products bound the step, far below it memory and small operations do.

`--shape` gives the recipe a Qwen2.5-VL of that size with random weights, TRACE's rank of LoRA and
gradient checkpointing; tokenizer, pictures and queries stay those of Scenes.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from recipe_steps import RecipeStep, build_recipe
from report import Row, describe_device, make_row, print_rows, write_rows
from step_clock import PARTS, StepClock, count_vision_passes, measure_matmul_peak
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, PretrainedConfig

from tracelib.assets import EMBEDDED_BACKBONE, resolve_backbone
from tracelib.models.shapes import read_published_config
from tracelib.module import RetrievalModule
from tracelib.types import TrainBatch

_LIMITS = {"loading_share": "<= 0.05", "vision_passes": "<= 1"}
_SHAPES = {"3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"}
_COMPUTED = ("vision", "language_model", "heads_and_losses")


def bench_step(
    config: Path = Path("configs/trace_scenes.yaml"),
    root: Path = Path("data/scenes"),
    shape: Literal["embedded", "3b", "7b"] = "embedded",
    batch_size: int = 96,
    micro_batch_size: int | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    num_threads: int = 2,
    num_steps: int = 20,
) -> list[Row]:
    """Measure, print the rows and write them to step_profile-SHAPE-DEVICE.json.

    Args:
        config: The recipe.
        root: Data root in place of the recipe's.
        shape: `embedded` takes the recipe's model, the others one of random weights.
        batch_size: Contrastive batch.
        micro_batch_size: Most sequences encoded at once; null holds the whole batch.
        device: Where the model runs, e.g. `cuda`.
        dtype: Type of the weights of a random model.
        num_threads: Threads.
        num_steps: Steps that are timed, after three that are not.
    """
    options = dict(locals())
    torch.set_num_threads(num_threads)
    settings = {
        "data.root": root,
        "data.contrastive_batch_size": batch_size,
        "data.micro_batch_size": "null" if micro_batch_size is None else micro_batch_size,
    }
    with tempfile.TemporaryDirectory() as folder:
        if shape != "embedded":
            config_of_shape = read_published_config(_SHAPES[shape])
            write_random_backbone(config_of_shape, Path(folder), dtype, device)
            settings |= {
                "model.encoder.init_args.backbone": folder,
                "model.encoder.init_args.dtype": dtype,
                "model.encoder.init_args.gradient_checkpointing": "true",
                "model.encoder.init_args.lora.rank": 128,  # TRACE, table 7
                "model.encoder.init_args.lora.alpha": 256,
            }
        module, data = build_recipe(config, settings)
    module.to(device)
    values = profile_steps(module, iter(data.train_dataloader()), num_steps)
    name = torch.cuda.get_device_name(device) if "cuda" in device else describe_device()
    bench = "profile" if shape == "embedded" else f"profile-{shape}"
    rows = [make_row(bench, k, v, _LIMITS.get(k, "")) | {"device": name} for k, v in values.items()]
    print_rows(rows)
    write_rows(f"step_profile-{shape}-{torch.device(device).type}", rows, options)
    return rows


def write_random_backbone(config: PretrainedConfig, folder: Path, dtype: str, device: str) -> None:
    """Write a backbone of random weights that reads with the embedded one's tokenizer.

    Args:
        config: Its architecture; the ids of its picture tokens become the tokenizer's.
        folder: Where to.
        dtype: Type of the weights.
        device: Where they are drawn.
    """
    embedded = Path(resolve_backbone(EMBEDDED_BACKBONE))
    known = json.loads((embedded / "config.json").read_text())
    for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
        setattr(config, name, known.get(name, 0))
    make: Any = AutoModelForImageTextToText.from_config
    with torch.device(device):
        make(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    for path in embedded.iterdir():
        if path.name.startswith(("tokenizer", "preprocessor", "chat_template")):
            shutil.copy(path, folder)


def profile_steps(
    module: RetrievalModule, batches: Iterator[TrainBatch], num_steps: int
) -> dict[str, float]:
    """Return the shares of a step's parts, and how near its products come to the machine's.

    Raises:
        ValueError: A block of the vision tower did not read each picture once.
    """
    step, encoder = RecipeStep(module), module.encoder
    clock = StepClock(encoder, encoder.device)
    read_counts = count_vision_passes(encoder)
    step.take(next(batches))
    with FlopCounterMode(display=False) as counter:
        batch = next(batches)
        step.take(batch)
    flops_per_token = counter.get_total_flops() / count_tokens(batch)
    step.take(next(batches))
    seconds = dict.fromkeys(PARTS, 0.0)
    counts_before, num_patches, num_tokens, step_seconds = read_counts(), 0, 0, []
    for _ in range(num_steps):
        clock.seconds = dict.fromkeys(PARTS, 0.0)
        with clock.time_part("loading"):
            batch = next(batches)
        take_step(step, clock, batch)
        for part, value in clock.seconds.items():
            seconds[part] += value
        step_seconds.append(sum(clock.seconds.values()))
        num_tokens += count_tokens(batch)
        num_patches += sum(
            0 if chunk.pixel_values is None else len(chunk.pixel_values)
            for chunk in (*batch.query, *batch.candidate)
        )
    total = sum(seconds.values())
    values = {f"{part}_share": seconds[part] / total for part in PARTS}
    values["step_seconds"] = statistics.median(step_seconds)
    if num_patches:
        passes = {
            (after - before) / num_patches
            for before, after in zip(counts_before, read_counts(), strict=True)
        }
        values["vision_passes"] = max(passes)
        if passes != {1.0}:
            raise ValueError(f"blocks of the vision tower read each picture {passes} times a step")
    reached = flops_per_token * num_tokens / sum(seconds[part] for part in _COMPUTED)
    peak = measure_matmul_peak(encoder.dtype, encoder.device)
    return values | {
        "gflops_per_second": reached / 1e9,
        "matmul_peak_gflops_per_second": peak / 1e9,
        "flop_share": reached / peak,
    }


def take_step(step: RecipeStep, clock: StepClock, batch: TrainBatch) -> None:
    """Take a step as `RecipeStep` does, under the clock."""
    clock.switch("rest")

    def backward(loss: torch.Tensor) -> None:
        clock.switch("heads_and_losses")
        torch.autograd.backward(loss)
        clock.switch("rest")

    backward(step.module.joint_step.run(batch, backward).loss)
    clock.switch("optimizer")
    step.update()
    clock.switch("")


def count_tokens(batch: TrainBatch) -> int:
    """Return the tokens of a batch, padding and those of pictures included."""
    return sum(chunk.input_ids.numel() for chunk in (*batch.query, *batch.candidate))


if __name__ == "__main__":
    auto_cli(bench_step)
