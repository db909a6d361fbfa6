"""Checkpoints are whole files at every moment, and the run's last one brings its adapter."""

import threading

import pytest
import torch
from safetensors import safe_open

from tracelib.callbacks.adapter_checkpoint import (
    AdapterCheckpointIO,
    find_adapter,
    find_checkpoint,
)
from tracelib.callbacks.run_checkpoint import RunCheckpoint


def make_checkpoint(step, size=4):
    weights = {"lora_B": torch.full((size,), float(step))}
    return {"state_dict": weights, "backbone_fingerprint": "abc", "global_step": step}


def test_the_runs_last_checkpoint_brings_its_adapter(tmp_path):
    files = AdapterCheckpointIO(tmp_path)
    files.save_checkpoint(make_checkpoint(3), tmp_path / "elsewhere" / "best.ckpt")
    assert not find_adapter(tmp_path).exists()
    files.save_checkpoint(make_checkpoint(5), find_checkpoint(tmp_path))
    with safe_open(find_adapter(tmp_path), framework="pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("lora_B").tolist() == [5.0] * 4
    assert metadata["global_step"] == "5"
    assert metadata["backbone_fingerprint"] == "abc"
    assert metadata["tracelib_version"]
    found = files.load_checkpoint(find_checkpoint(tmp_path), weights_only=True)
    assert found["global_step"] == 5
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert names == ["adapter.safetensors", "checkpoints/last.ckpt", "elsewhere/best.ckpt"]


def test_who_reads_while_it_is_written_finds_a_whole_one(tmp_path):
    files, path = AdapterCheckpointIO(tmp_path), find_checkpoint(tmp_path)
    files.save_checkpoint(make_checkpoint(0, 1 << 18), path)
    writer = threading.Thread(
        target=lambda: [files.save_checkpoint(make_checkpoint(n, 1 << 18), path) for n in range(30)]
    )
    writer.start()
    num_reads = 0
    while writer.is_alive():
        found = torch.load(path, weights_only=True)
        assert (found["state_dict"]["lora_B"] == found["global_step"]).all()
        num_reads += 1
    writer.join()
    assert num_reads > 3


def test_a_failed_write_leaves_the_old_one(tmp_path):
    files, path = AdapterCheckpointIO(tmp_path), find_checkpoint(tmp_path)
    files.save_checkpoint(make_checkpoint(1), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        files.save_checkpoint({**make_checkpoint(2), "function": lambda: None}, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_steps_between_saves_are_checked():
    with pytest.raises(ValueError, match=r"every_n_steps is 0, must be at least 1 \(checkpoint"):
        RunCheckpoint(every_n_steps=0)
