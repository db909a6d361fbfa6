"""What both sides of the direct bench are given, and how they are measured.

Each side is a script of its own that imports no more than it needs: its process is what is
measured.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peak_memory import measure_peak

_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class TextTraining:
    """A training run on text pairs.

    Args:
        folder: Holds `tree`, the pairs as a Scenes tree; `pairs.json`, their texts; and
            `text_model`.
        config: Our recipe.
        lora_rank: Rank of LoRA; None trains all of the language model.
        lora_alpha: Its scale.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        temperature: Of the contrastive loss.
        batch_size: Pairs of a step.
        micro_batch_size: Most sequences encoded at once.
        num_steps: Steps of a run, of which the first two are not timed.
        num_threads: Threads.
    """

    folder: str
    config: str
    lora_rank: int | None
    lora_alpha: int
    learning_rate: float
    weight_decay: float
    temperature: float
    batch_size: int
    micro_batch_size: int
    num_steps: int
    num_threads: int


@dataclass(frozen=True)
class Measured:
    """What a run of one side gave.

    Args:
        samples_per_second: Pairs per second after the first steps, loading included.
        held: Bytes of the process before training, model and data loaded.
        peak: Most bytes of the process.
    """

    samples_per_second: float
    held: float
    peak: float


def run_side(script: str, training: TextTraining) -> Measured:
    """Return what a side measured in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    words = [sys.executable, str(Path(__file__).with_name(script))]
    words.append(json.dumps(dataclasses.asdict(training)))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} failed:\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure_side(
    load: Callable[[TextTraining], tuple[Callable[[], object], list[float]]],
) -> None:
    """Run the side that this process is, and print what it measured.

    Args:
        load: Returns what trains, and the list that the end of each step is put into.
    """
    training = TextTraining(**json.loads(sys.argv[1]))
    torch.set_num_threads(training.num_threads)
    train, ends = load(training)
    held, peak = measure_peak(train, "cpu")
    measured = Measured(compute_rate(ends, training.batch_size), held, peak)
    print(json.dumps(dataclasses.asdict(measured)))  # noqa: T201


def compute_rate(ends: list[float], batch_size: int) -> float:
    """Return pairs per second after the first steps.

    >>> compute_rate([0.0, 9.0, 10.0, 12.0], 4)
    2.6666666666666665
    """
    timed = ends[_WARM_UP_STEPS - 1 :]
    return batch_size * (len(timed) - 1) / (timed[-1] - timed[0])
