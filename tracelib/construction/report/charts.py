"""A build in TensorBoard: counts, histograms of lengths and confidences, and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from tracelib.construction.report.sample import Sample
from tracelib.construction.report.sample_picture import draw_sample
from tracelib.construction.report.summary import Summary
from tracelib.construction.report.tally import Tally, choose_bins

_MAX_BINS = 40
_PICTURES_PER_GROUP = 3
_COUNTS = ("num_queries", "num_kept", "num_direct", "num_unanswered")


def write_charts(
    folder: Path, summary: Summary, groups: Mapping[str, Sequence[Sample]], root: Path
) -> None:
    """Write a build's TensorBoard log; the one of the last report goes.

    Args:
        folder: Folder of the log, of this build alone.
        summary: The build in numbers.
        groups: Samples by what they are an example of.
        root: Folder that their pictures lie in.
    """
    old = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        for name in _COUNTS:
            writer.add_scalar(f"counts/{name}", summary.count(name))
        for (phase, rule), count in sorted(summary.count_rules().items()):
            writer.add_scalar(f"drops/{phase}/{rule}", count)
        for name, tallies in summary.histograms.items():
            for part, tally in zip(("all", "kept"), tallies, strict=True):
                _add_histogram(writer, f"{name.replace(', ', '_')}/{part}", tally)
        for name, samples in groups.items():
            tag = f"samples/{name.replace(' ', '/', 1)}"
            for step, sample in enumerate(samples[:_PICTURES_PER_GROUP]):
                picture = np.asarray(draw_sample(sample, root))
                writer.add_image(tag, picture, step, dataformats="HWC")
    for path in old:
        path.unlink(missing_ok=True)


def _add_histogram(writer: SummaryWriter, tag: str, tally: Tally) -> None:
    if not tally.num_values:
        return
    starts, width = choose_bins([tally], _MAX_BINS)
    bars = tally.split_bins(starts, width)
    low, high = tally.range
    writer.add_histogram_raw(
        tag,
        low,
        high,
        tally.num_values,
        *tally.sum_powers(),
        bucket_limits=[bar.high for bar in bars],
        bucket_counts=[bar.num_values for bar in bars],
    )
