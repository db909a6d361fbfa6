"""The guard of trained weights: what it lets in, and what each refusal names."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from tracelib.models.adapter_file import AdapterError, read_adapter, write_adapter

NAMES = ("layer.lora_A.weight", "layer.lora_B.weight", "merger.bias", "task_counts")


@pytest.fixture
def weights():
    found = {name: torch.randn(3, 2) for name in NAMES}
    return {**found, "task_counts": torch.arange(4).view(2, 2), "scale": torch.tensor(0.5)}


def change(weights, **changes):
    """Return the weights with some replaced, or left out where None."""
    changed = {**weights, **{name.replace("__", "."): w for name, w in changes.items()}}
    return {name: w for name, w in changed.items() if w is not None}


def test_weights_come_back_to_the_bit(weights, tmp_path):
    path = tmp_path / "run" / "adapter.safetensors"
    half = weights["merger.bias"].to(torch.bfloat16)
    written = change(weights, merger__bias=half.T.contiguous().T)  # strided
    write_adapter(path, written, "abc", 7)
    found = read_adapter(path, weights, "abc")
    assert found.keys() == written.keys()
    for name, weight in written.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"merger__bias": None}, r"lacks \['merger.bias'\]"),
        ({"router__bias": torch.ones(1)}, r"has unexpected \['router.bias'\]"),
        ({"scale": torch.ones(1)}, r"another shape .*\['scale \[1\], not \[\]'\]"),
        ({"merger__bias": torch.tensor([[0.0, torch.nan]] * 3)}, r"not finite in \['merger.bias'"),
        ({"merger__bias": torch.tensor([[0.0, torch.inf]] * 3)}, r"not finite in \['merger.bias'"),
        ({"layer__lora_B__weight": torch.zeros(3, 2)}, r"7 steps, but .*\['layer.lora_B.weight'"),
    ],
)
def test_wrong_weights_are_refused_by_name(weights, tmp_path, changes, complaint):
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, change(weights, **changes), "abc", 7)
    with pytest.raises(AdapterError, match=complaint) as refusal:
        read_adapter(path, weights, "abc")
    assert str(refusal.value).startswith(str(path))


def test_before_the_first_step_updates_are_zero(weights, tmp_path):
    path = tmp_path / "adapter.safetensors"
    fresh = change(weights, layer__lora_B__weight=torch.zeros(3, 2), merger__bias=torch.zeros(3, 2))
    write_adapter(path, fresh, "abc", 0)
    assert read_adapter(path, weights, "abc").keys() == weights.keys()


def test_another_backbone_or_file_is_refused(weights, tmp_path):
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(FileNotFoundError, match=r"adapter.safetensors is missing"):
        read_adapter(path, weights, "abc")
    write_adapter(path, weights, "abc", 7)
    with pytest.raises(AdapterError, match=r"trained on backbone abc, the recipe loads xyz.*init_"):
        read_adapter(path, weights, "xyz")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", b"\x80\x04pickled"):
        path.write_bytes(damaged)
        with pytest.raises(AdapterError, match=r"is no whole safetensors file"):
            read_adapter(path, weights, "abc")
    save_file(weights, path)
    with pytest.raises(AdapterError, match=r"holds no backbone_fingerprint"):
        read_adapter(path, weights, "abc")


@pytest.mark.parametrize("moment", ["before", "amid", "after"])
def test_a_kill_in_the_writing_leaves_the_old_file_or_the_new_one(weights, tmp_path, moment):
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, weights, "abc", 7)
    newer = change(weights, merger__bias=torch.ones(3, 2))
    child = os.fork()
    if not child:
        kill_in_writing(path, newer, moment)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    expected = newer if moment == "after" else weights
    found = read_adapter(path, weights, "abc")
    assert torch.equal(found["merger.bias"], expected["merger.bias"])
    assert load_file(path).keys() == weights.keys()


def kill_in_writing(path, weights, moment):
    """Be a process that dies right before, amid or right after putting the new file in place."""
    from tracelib.models import adapter_file

    save = adapter_file.save_file

    def die(weights, partial, metadata):
        if moment == "amid":
            save(weights, partial, metadata)
            partial.write_bytes(partial.read_bytes()[:-5])
        os.kill(os.getpid(), signal.SIGKILL)

    if moment != "after":
        adapter_file.save_file = die
    write_adapter(path, weights, "abc", 8)
    os.kill(os.getpid(), signal.SIGKILL)
