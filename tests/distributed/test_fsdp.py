"""Weights sharded over two processes train as whole ones do, and are saved whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import cut_scenes, read_metrics, write_recipe
from tracelib.cli import main

REPOSITORY = Path(__file__).parents[2]
OVERLAY = REPOSITORY / "configs" / "overlays" / "fsdp.yaml"
PLAIN = [
    "--data.contrastive_batch_size=4",
    "--trainer.gradient_clip_val=0.5",
    "--trainer.limit_val_batches=0",
    "--seed_everything=4",  # rank 0 has no picture in a batch where rank 1 has some
]


def fit_sharded(arguments, log):
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "tracelib", "fit", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=240,
            check=False,
        )
    return done.returncode, log.read_text()


def insert_overlay(arguments, *settings):
    return [arguments[0], f"--config={OVERLAY}", *arguments[1:], *settings]


@pytest.mark.slow
def test_a_sharded_fit_is_that_of_one_process(tiny_scenes, tiny_backbone, tmp_path):
    """One epoch, and another in a new fit that goes on from the first one's checkpoint."""
    root = cut_scenes(tiny_scenes, tmp_path / "scenes")
    runs, files, adapters = {}, {}, {}
    for name in ("one", "two"):
        arguments = [*write_recipe(tmp_path / name, root, tiny_backbone), *PLAIN]
        first, second = (tmp_path / name / "tiny" / f"version_{number}" for number in (0, 1))
        last = Path("checkpoints", "last.ckpt")
        fits = (["--trainer.max_epochs=1"], [f"--ckpt_path={first / last}"])
        for settings in fits:
            if name == "one":
                main(["fit", *arguments, *settings])
            else:
                sharded = insert_overlay(arguments, "--trainer.devices=2", *settings)
                code, output = fit_sharded(sharded, tmp_path / "log.txt")
                assert code == 0, output[-3000:]
        metrics = read_metrics(first), read_metrics(second)
        runs[name] = {key: values + metrics[1][key] for key, values in metrics[0].items()}
        files[name] = torch.load(second / last, weights_only=True)
        adapters[name] = load_file(second / "adapter.safetensors")
    for key in ("train/loss", "train/contrastive_loss", "train/lm_loss", "train/router_loss"):
        assert runs["two"][key] == pytest.approx(runs["one"][key], rel=1e-3), key
        assert len(runs["two"][key]) == 6
    one, two = (files[name]["state_dict"] for name in ("one", "two"))
    assert list(two) == list(one)
    for key, weight in one.items():
        assert type(two[key]) is torch.Tensor
        assert two[key].shape == weight.shape
        assert torch.allclose(two[key], weight, rtol=1e-3, atol=1e-3), key
        assert torch.equal(adapters["two"][key], two[key])
