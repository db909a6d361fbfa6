"""What every test may use: a real, tiny Qwen2.5-VL and a small Scenes benchmark, both made here."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.tiny_backbones import write_backbone
from tracelib.data.scenes.benchmark import scenes
from tracelib.pretraining.blank import build_blank_backbone, train_tokenizer, write_processors


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_port() -> None:
    """Forget the port of a process group in this process, which keeps it: others would take it."""
    os.environ.pop("MASTER_PORT", None)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on many threads, and sums are reproducible on one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """Folder of an untrained Qwen2.5-VL with its tokenizer and image processor.

    Heads are 8 wide, so that time, height and width all take part in the rotary positions. Weights
    are five times the usual, which suit widths of thousands: the last state feels the context.
    """
    folder = tmp_path_factory.mktemp("tiny_backbone")
    tokenizer = train_tokenizer(seed=0, vocab_size=400, num_texts=200)
    write_processors(tokenizer, folder)
    torch.manual_seed(0)
    model = build_blank_backbone(
        tokenizer,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_key_value_heads=2,
        vision_hidden_size=16,
        vision_depth=2,
        vocab_size=416,
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_backbone(tmp_path_factory) -> Callable[[str], Path]:
    """Call it with `qwen2_vl`, `qwen3_vl` or `smolvlm` for the folder of such a tiny backbone."""
    return cache(lambda family: write_backbone(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="session")
def tiny_model(tiny_backbone) -> Callable[[], Qwen2_5_VLForConditionalGeneration]:
    """Call it for a fresh copy of the tiny backbone's model, in evaluation mode."""
    return lambda: Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_backbone).eval()


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory) -> Path:
    """Root of a small Scenes benchmark in M-BEIR's files."""
    root = tmp_path_factory.mktemp("tiny") / "scenes"
    scenes(root, seed=0, num_train=160, num_val=64, num_test=64)
    return root
