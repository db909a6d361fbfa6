"""Endless pretraining text: read a card and follow a chain of edits step by step."""

from __future__ import annotations

from pathlib import Path
from random import Random

import lightning
from torch.utils.data import DataLoader, Dataset

from tracelib.data.collator import ChatProcessor, Turn
from tracelib.data.scenes import wording
from tracelib.data.scenes.drawing import draw_scene
from tracelib.data.scenes.world import MAX_CHAIN_LENGTH, Split, sample_chain, sample_scene
from tracelib.data.workers import follow_parent, get_worker_context
from tracelib.prompts import Template, format_query
from tracelib.types import EncoderInput

END = "<|im_end|>"
_SYSTEM_LINES = ("", "", "Work step by step.")
_REQUESTS = (
    "",
    "say what the card shows",
    "read the card",
    "work it out",
    "what is on the card",
    "go step by step",
)
_LENGTH_GROUPS = ((0, 1, 2), (3, 4))
"""Each batch draws its chain lengths from one group, so that little of it is padding."""


def sample_turn(rng: Random, length: int, split: Split) -> Turn:
    """Draw one example: a card as picture, caption or passage, edits, and the states in words.

    Args:
        rng: Source of randomness.
        length: Number of edits; 0 asks to read the card.
        split: Split of every state.
    """
    operations, states = (
        sample_chain(rng, length, split) if length else ([], [sample_scene(rng, split)])
    )
    form = rng.choices(("picture", "caption", "passage"), (0.55, 0.25, 0.2))[0]
    words = {
        "picture": "",
        "caption": wording.write_caption(states[0], rng),
        "passage": wording.write_passage(states[0]),
    }
    edits = wording.write_edits(operations)
    text = f"{words[form]}: {edits}" if words[form] and edits else words[form] or edits
    images = [draw_scene(states[0], rng)] if form == "picture" else []
    template = Template(system=rng.choice(_SYSTEM_LINES))
    messages = template.build_messages(
        len(images), format_query(rng.choice(_REQUESTS), text), "", -1
    )
    return Turn(messages, images, " ".join(wording.write_rationale(states)).strip(), END)


class _Batches(Dataset[EncoderInput]):
    """Batch `i` is a function of (seed, i) alone, wherever the run was resumed."""

    def __init__(
        self, processor: ChatProcessor, seed: int, batch_size: int, indices: range
    ) -> None:
        self.processor, self.seed, self.batch_size, self.indices = (
            processor,
            seed,
            batch_size,
            indices,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> EncoderInput:
        index = self.indices[position]
        rng = Random(f"pretraining {self.seed} {index}")
        lengths = _LENGTH_GROUPS[index % len(_LENGTH_GROUPS)]
        return self.processor(
            [sample_turn(rng, rng.choice(lengths), "train") for _ in range(self.batch_size)]
        )


class PretrainingDataModule(lightning.LightningDataModule):
    """Pretraining turns from the train scenes, and held-out ones from the val scenes.

    Args:
        folder: Where the blank backbone's tokenizer and image processor are.
        seed: Seed of everything drawn.
        batch_size: Turns per batch.
        steps_per_epoch: Batches between two checkpoints; every epoch draws new ones.
        val_size: Held-out turns per chain length.
        num_workers: Worker processes.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        batch_size: int,
        steps_per_epoch: int,
        val_size: int = 256,
        num_workers: int = 1,
    ) -> None:
        super().__init__()
        self.seed, self.batch_size, self.val_size = seed, batch_size, val_size
        self.steps_per_epoch, self.num_workers = steps_per_epoch, num_workers
        self.processor = ChatProcessor(folder, emb_token=END)

    def train_dataloader(self) -> DataLoader[EncoderInput]:
        """Return the batches of the current epoch; the trainer must reload it every epoch."""
        start = self.trainer.current_epoch * self.steps_per_epoch if self.trainer else 0
        batches = _Batches(
            self.processor, self.seed, self.batch_size, range(start, start + self.steps_per_epoch)
        )
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context=get_worker_context(self.num_workers),
            worker_init_fn=follow_parent,
        )

    def val_dataloader(self) -> DataLoader[EncoderInput]:
        """Return one batch of held-out turns per chain length: batch `i` has `i` edits."""
        rng = Random(f"held out {self.seed}")
        batches = [
            self.processor([sample_turn(rng, length, "val") for _ in range(self.val_size)])
            for length in range(MAX_CHAIN_LENGTH + 1)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
