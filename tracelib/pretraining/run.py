"""The `pretrain` verb: makes the embedded backbone from nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tracelib.pretraining.blank import build_blank_backbone, train_tokenizer, write_processors
from tracelib.pretraining.data import PretrainingDataModule
from tracelib.pretraining.module import PretrainingModule

_CARD = """# The embedded backbone

A Qwen2.5-VL of {parameters:,} parameters with random initial weights, pretrained by language
modelling alone to read cards of coloured shapes and to follow chains of edits step by step. It
plays the part of a pretrained multimodal LLM where no such model can be downloaded. It has never
seen an embedding token, a retrieval pair, or a val or test scene.

| | |
|---|---|
| data | Scenes, train split (75 % of all 1,679,616), drawn afresh for every step |
| seed | {seed} |
| command | `python -m tracelib pretrain --config configs/pretrain_scenes.yaml` |
| steps | {steps:,} of {batch_size} turns, AdamW, peak learning rate {learning_rate} |
| wall time | {minutes:.0f} minutes with {threads} threads, torch {torch} |

Share of thoughts written exactly, to the last token, on held-out (val) scenes, greedy decoding,
{val_size} turns per length:

| edits | {lengths} |
|---|{rule}|
| exact | {rates} |
"""


def pretrain(
    folder: Path = Path("runs/pretrain_scenes"),
    seed: int = 0,
    num_epochs: int = 16,
    steps_per_epoch: int = 250,
    batch_size: int = 96,
    learning_rate: float = 2e-3,
    warmup_steps: int = 150,
    val_size: int = 256,
) -> None:
    """Pretrain the embedded backbone from nothing; write it and its card to `folder`/backbone.

    Run again after an interruption, it goes on from the last finished epoch and ends with the same
    weights.

    Args:
        folder: Where checkpoints and the result go.
        seed: Seed of weights and data.
        num_epochs: Checkpoints of the run.
        steps_per_epoch: Steps between two checkpoints.
        batch_size: Turns per step.
        learning_rate: Peak learning rate of a cosine schedule.
        warmup_steps: Steps of linear warm-up.
        val_size: Held-out turns per chain length.
    """
    lightning.seed_everything(seed, workers=True)
    start = time.monotonic()
    backbone = folder / "backbone"
    tokenizer = train_tokenizer(seed)
    write_processors(tokenizer, backbone)
    model = build_blank_backbone(tokenizer)
    model.config.save_pretrained(backbone)  # names the image token
    module = PretrainingModule(model, learning_rate, warmup_steps, num_epochs * steps_per_epoch)
    data = PretrainingDataModule(backbone, seed, batch_size, steps_per_epoch, val_size)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="auto",
        devices=1,
        max_epochs=num_epochs,
        gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[ModelCheckpoint(folder / "checkpoints", save_last=True)],
        log_every_n_steps=25,
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    # Measured here once more: a run that is resumed when it is over does not validate by itself.
    trainer.validate(module, data, verbose=False)
    rates = {
        key: round(value.item(), 4)
        for key, value in trainer.callback_metrics.items()
        if key.startswith("val/")
    }
    model.save_pretrained(backbone)
    (backbone / "exact_rationale.json").write_text(json.dumps(rates, indent=2) + "\n")
    (backbone / "README.md").write_text(
        _CARD.format(
            parameters=model.num_parameters(),
            seed=seed,
            steps=trainer.global_step,
            batch_size=batch_size,
            learning_rate=learning_rate,
            minutes=(time.monotonic() - start) / 60,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            val_size=val_size,
            lengths=" | ".join(key.rpartition("_")[2] for key in rates),
            rule="---|" * (len(rates) - 1) + "---",
            rates=" | ".join(f"{rate:.3f}" for rate in rates.values()),
        )
    )
