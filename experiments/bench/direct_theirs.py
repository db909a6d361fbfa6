"""sentence-transformers' side of the direct bench: its own trainer on the same texts."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from text_training import TextTraining, measure_side
from transformers import TrainerCallback

_TARGET_MODULES = r".*layers\.\d+\.(self_attn|mlp)\.\w+_proj"


class StepClock(TrainerCallback):
    """Keeps when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time."""
        self.ends.append(time.perf_counter())


def build_theirs(training: TextTraining) -> SentenceTransformer:
    """Return the text model with last-token pooling, adapted as ours is or trained whole."""
    text_model = Path(training.folder) / "text_model"
    body = Transformer(
        str(text_model),
        model_kwargs={"dtype": torch.float32, "attn_implementation": "sdpa"},
        tokenizer_name_or_path=str(text_model / "tokenizer"),
    )
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[body, pooling], device="cpu")
    if training.lora_rank is not None:
        model.add_adapter(
            LoraConfig(
                r=training.lora_rank,
                lora_alpha=training.lora_alpha,
                target_modules=_TARGET_MODULES,
            )
        )
    return model


def build_loss(
    training: TextTraining, model: SentenceTransformer
) -> CachedMultipleNegativesRankingLoss:
    """Return the loss with cached gradients."""
    return CachedMultipleNegativesRankingLoss(
        model, scale=1 / training.temperature, mini_batch_size=training.micro_batch_size
    )


def load(training: TextTraining) -> tuple[Callable[[], object], list[float]]:
    """Load model and texts; return what trains, and where the ends of its steps go."""
    pairs = Dataset.from_dict(json.loads((Path(training.folder) / "pairs.json").read_text()))
    model, clock = build_theirs(training), StepClock()
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=tempfile.mkdtemp(dir=training.folder),
            max_steps=training.num_steps,
            per_device_train_batch_size=training.batch_size,
            dataloader_drop_last=True,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            optim="adamw_torch",
            max_grad_norm=1.0,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=pairs,
        loss=build_loss(training, model),
        callbacks=[clock],
    )
    return trainer.train, clock.ends


if __name__ == "__main__":
    measure_side(load)
