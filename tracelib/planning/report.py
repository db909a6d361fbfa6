"""The plan of a recipe: as numbers for a file, and as tables for people."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tracelib.models.cost import StepFlops, StepMemory
from tracelib.models.model_sizes import ModelSize
from tracelib.models.step_shape import StepShape
from tracelib.planning.gpus import GPU
from tracelib.planning.step import Records

_GIB = 1 << 30
_TABLE_WIDTH = 100


@dataclass(frozen=True)
class Plan:
    """What a recipe costs.

    Args:
        recipe: Its file.
        model: Sizes of its model.
        records: What is assumed of its records.
        step: Shape of a step on one device.
        flops: Operations of a step on one device.
        memory: Memory of a step on one device.
        gpu_name: The device.
        gpu: Its speed and memory.
        num_gpus: How many.
        num_epochs: Passes over the training queries.
        num_steps: Steps of the whole training.
        hours: Hours in which it is to be done.
        utilization: Share of the peak speed that is reached, 0 .. 1.
    """

    recipe: str
    model: ModelSize
    records: Records
    step: StepShape
    flops: StepFlops
    memory: StepMemory
    gpu_name: str
    gpu: GPU
    num_gpus: int
    num_epochs: int
    num_steps: int
    hours: float
    utilization: float

    @property
    def step_seconds(self) -> float:
        """Time of a step at the assumed utilization."""
        return self.flops.total / (self.gpu.peak_flops * self.utilization)

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs together."""
        return self.step_seconds * self.num_steps * self.num_gpus / 3600

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second over all GPUs that finish in `hours`."""
        return self.step.num_tokens * self.num_gpus * self.num_steps / (self.hours * 3600)

    @property
    def fits(self) -> bool:
        """Whether a step fits into the GPU's memory."""
        return self.memory.total <= self.gpu.memory_gib * _GIB

    def to_json(self) -> dict[str, Any]:
        """Return all numbers; memory in bytes."""
        parts = {**self.model.parts, "total": self.model.total}
        return {
            "recipe": self.recipe,
            "parameters": {
                name: {
                    "total": part.parameters,
                    "trainable": part.trainable,
                    "frozen": part.parameters - part.trainable,
                }
                for name, part in parts.items()
            },
            "records": dataclasses.asdict(self.records),
            "step": {
                **{k: v for k, v in dataclasses.asdict(self.step).items() if k != "chunks"},
                "num_chunks": len(self.step.chunks),
                "largest_chunk": dataclasses.asdict(_find_largest(self.step)),
                "num_tokens": self.step.num_tokens,
            },
            "flops": {**dataclasses.asdict(self.flops), "total": self.flops.total},
            "memory": {**dataclasses.asdict(self.memory), "total": self.memory.total},
            "gpu": self.gpu_name,
            "num_gpus": self.num_gpus,
            "fits": self.fits,
            "utilization": self.utilization,
            "step_seconds": self.step_seconds,
            "num_epochs": self.num_epochs,
            "num_steps": self.num_steps,
            "hours": self.hours,
            "tokens_per_second": self.tokens_per_second,
            "gpu_hours": self.gpu_hours,
        }


def print_plan(console: Console, plan: Plan) -> None:
    """Print the plan as tables, with what it assumes."""
    console.width = max(console.width, _TABLE_WIDTH)
    table = Table("parameters", title=plan.recipe)
    for heading in ("total", "trainable", "frozen"):
        table.add_column(heading, justify="right")
    for name, part in {**plan.model.parts, "total": plan.model.total}.items():
        if name == "total":
            table.add_section()
        numbers = (part.parameters, part.trainable, part.parameters - part.trainable)
        table.add_row(name.replace("_", " "), *(f"{number:,}" for number in numbers))
    console.print(table)
    _print_records(console, plan)
    _print_parts(console, "TFLOP a step, on one GPU", plan.flops, 1e12, plan.flops.total)
    _print_parts(console, "GiB at the peak, on one GPU", plan.memory, _GIB, plan.memory.total)
    _print_time(console, plan)


def _print_records(console: Console, plan: Plan) -> None:
    records, step = plan.records, plan.step
    chunk = _find_largest(step)
    console.print(
        f"assumed: query {records.query_width:,} tokens ({records.query_tokens} text, "
        f"{records.query_images:g} x {records.image_tokens} image, {records.rationale_tokens} "
        f"rationale, {records.thought_tokens} own thought), candidate "
        f"{records.candidate_width:,} ({records.candidate_tokens} text, "
        f"{records.candidate_images:g} x {records.image_tokens} image). The recipe's limits are "
        "an upper bound; options of the same names set what your data has.",
        highlight=False,
    )
    how = "one at a time, encoded twice (cached gradients)" if step.is_cached else "all held"
    console.print(
        f"a step of one GPU: {step.num_queries} queries, {step.num_tokens:,} tokens in "
        f"{len(step.chunks)} chunks, {how}; the largest {chunk.num_sequences} x {chunk.width} "
        "tokens",
        highlight=False,
    )


def _print_parts(
    console: Console, title: str, parts: StepFlops | StepMemory, unit: float, total: int
) -> None:
    table = Table(title, title_justify="left")
    table.add_column("", justify="right")
    for name, number in dataclasses.asdict(parts).items():
        if number:
            table.add_row(name.replace("_", " "), f"{number / unit:,.3f}")
    table.add_section()
    table.add_row("total", f"{total / unit:,.3f}")
    console.print(table)


def _print_time(console: Console, plan: Plan) -> None:
    reached = plan.step.num_tokens * plan.num_gpus / plan.step_seconds
    verdict = "fits into" if plan.fits else "does NOT fit into"
    advice = "" if plan.fits else "; lower data.micro_batch_size or data.max_image_tokens"
    for line in (
        f"{plan.memory.total / _GIB:,.1f} GiB {verdict} the {plan.gpu.memory_gib:g} of "
        f"{plan.gpu_name}{advice}",
        f"{plan.records.num_queries:,} training queries, {plan.num_epochs} epoch(s): "
        f"{plan.num_steps:,} steps",
        f"{plan.num_gpus} x {plan.gpu_name} at {plan.utilization:.0%} of "
        f"{plan.gpu.peak_flops / 1e12:,.0f} TFLOP/s: {plan.step_seconds:,.3g} s a step, "
        f"{reached:,.0f} tokens/s, {plan.gpu_hours:,.1f} GPU-hours",
        f"to be done in {plan.hours:g} h: {plan.tokens_per_second:,.0f} tokens/s, "
        f"{plan.tokens_per_second / plan.num_gpus:,.0f} on each GPU",
    ):
        console.print(line, highlight=False)


def _find_largest(step: StepShape) -> Any:
    return max(step.chunks, key=lambda chunk: chunk.num_tokens)
