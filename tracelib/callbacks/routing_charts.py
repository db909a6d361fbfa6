"""Pictures of calibration and routing, beside the JSON they show and in a run's TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from tracelib.callbacks.line_chart import (
    COLORS,
    GREY,
    Axis,
    Series,
    draw_line_chart,
    fit_axis,
)
from tracelib.callbacks.think_curve_report import ThinkCurves
from tracelib.metrics.reliability import Reliability
from tracelib.metrics.think_curve import THINK_RATES

_GATE_COLORS = {
    "oracle": COLORS[0],
    "head": COLORS[1],
    "first_token": COLORS[2],
    "task_prior": COLORS[3],
}
_RECALL = "recall at each column's headline k, mean over columns"


def draw_reliability(split: str, found: Mapping[str, Reliability]) -> Image.Image:
    """Return the reliability diagram of the router.

    Args:
        split: The split of the queries.
        found: By name, e.g. `raw` and `calibrated`.
    """
    series = [Series("perfect", [(0, 0), (1, 1)], GREY, is_dashed=True)]
    for (name, bins), color in zip(found.items(), COLORS, strict=False):
        points = list(zip(bins.probability.tolist(), bins.frequency.tolist(), strict=True))
        labels = [f"{count:,}" for count in bins.counts.tolist()]
        series.append(Series(name, points, color, labels))
    return draw_line_chart(
        f"Reliability of the router, {split} split",
        Axis("probability of needing thought, mean of each bin", 0, 1),
        Axis("share of queries that need it; beside each point the number of queries", 0, 1),
        series,
    )


def draw_think_curves(split: str, curves: ThinkCurves) -> dict[str, Image.Image]:
    """Return recall by think rate of each pool, and by speed where it was measured, by name."""
    pictures = {}
    rates = Axis("think rate", 0, 1)
    for pool in curves.pools:
        title = f"Recall by think rate, {split} split, {pool} pool"
        pictures[f"think_curve_{pool}"] = _draw_recall(title, pool, curves, rates, THINK_RATES)
        if (speeds := curves.queries_per_second) is not None:
            axis = fit_axis("queries/s", speeds)
            title = f"Recall by speed, {split} split, {pool} pool"
            pictures[f"recall_by_speed_{pool}"] = _draw_recall(title, pool, curves, axis, speeds)
    return pictures


def _draw_recall(
    title: str,
    pool: str,
    curves: ThinkCurves,
    x_axis: Axis,
    values: list[float] | tuple[float, ...],
) -> Image.Image:
    found = curves.pools[pool]
    series = []
    for gate in ("random", *(gate for gate in _GATE_COLORS if gate in found)):
        points = list(zip(values, found[gate].scores, strict=True))
        series.append(
            Series(gate, points, _GATE_COLORS.get(gate, GREY), is_dashed=gate == "random")
        )
    heights = [y for line in series for _, y in line.points]
    return draw_line_chart(title, x_axis, fit_axis(_RECALL, heights), series)


def write_charts(
    folder: Path,
    run: Path,
    split: str,
    pictures: Mapping[str, Image.Image],
    scalars: Mapping[str, float],
) -> None:
    """Write pictures as PNG into a folder, and all to the run's TensorBoard as `routing/<split>/`.

    Args:
        folder: Where the pictures go.
        run: The run's folder, in which its logs are.
        split: The split that was looked at.
        pictures: By name.
        scalars: Numbers by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with SummaryWriter(str(run)) as writer:
        for name, picture in pictures.items():
            temporary = folder / f".{name}.{os.getpid()}.png"
            try:
                picture.save(temporary)
                temporary.replace(folder / f"{name}.png")
            finally:
                temporary.unlink(missing_ok=True)
            writer.add_image(f"routing/{split}/{name}", np.asarray(picture), dataformats="HWC")
        for name, value in scalars.items():
            writer.add_scalar(f"routing/{split}/{name}", value)
