"""A run's trained weights in one safetensors file, and the guard that lets them in."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tracelib.retrieval.whole_files import replace_whole

_NUM_NAMED = 5


class AdapterError(ValueError):
    """Trained weights are not what the recipe expects; names the file and the first weights."""


def write_adapter(path: Path, weights: Mapping[str, Tensor], fingerprint: str, step: int) -> None:
    """Write trained weights whole or not at all.

    Args:
        path: The file.
        weights: All that is trained, by name.
        fingerprint: Of the backbone that it was trained on.
        step: How many steps it was trained.
    """
    metadata = {
        "backbone_fingerprint": fingerprint,
        "global_step": str(step),
        "tracelib_version": version("tracelib"),
    }
    with replace_whole(path) as partial:
        save_file({name: w.detach().contiguous() for name, w in weights.items()}, partial, metadata)


def read_step(path: Path) -> int:
    """Return how many steps the weights of a sound adapter file were trained."""
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["global_step"])


def read_adapter(path: Path, expected: Mapping[str, Tensor], fingerprint: str) -> dict[str, Tensor]:
    """Return the weights of a file that `write_adapter` wrote, after `check_adapter`.

    Raises:
        FileNotFoundError: There is no such file.
        AdapterError: The file is damaged or something else, or `check_adapter` refuses it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: it comes with a run's first checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterError(f"{path} is no whole safetensors file: {error}") from error
    if "backbone_fingerprint" not in metadata or not metadata.get("global_step", "").isdigit():
        raise AdapterError(f"{path} holds no backbone_fingerprint and global_step: no adapter file")
    check_backbone(str(path), metadata["backbone_fingerprint"], fingerprint)
    check_weights(str(path), weights, expected, int(metadata["global_step"]))
    return weights


def check_backbone(source: str, found: str | None, expected: str) -> None:
    """Refuse weights that were trained on another backbone.

    Raises:
        AdapterError: They were.
    """
    if found != expected:
        raise AdapterError(
            f"{source} was trained on backbone {found}, the recipe loads {expected}: set "
            f"model.encoder.init_args.backbone to that of {source}"
        )


def check_weights(
    source: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], step: int
) -> None:
    """Refuse weights that would leave a model in part untrained or broken.

    Args:
        source: Where they come from.
        given: The weights, by name.
        expected: The module's own, of which names and shapes count.
        step: How many steps they were trained.

    Raises:
        AdapterError: A weight is missing, unexpected, of another shape or not finite, or a LoRA
            update is still zero, as before the first step.
    """
    problems = {
        "lacks": expected.keys() - given.keys(),
        "has unexpected": given.keys() - expected.keys(),
        "has, of another shape than the recipe's,": [
            f"{name} {list(given[name].shape)}, not {list(expected[name].shape)}"
            for name in expected.keys() & given.keys()
            if given[name].shape != expected[name].shape
        ],
        "has values that are not finite in": [
            name for name, weight in given.items() if not weight.isfinite().all()
        ],
        f"was trained for {step} steps, but has untouched": [
            name for name, weight in given.items() if step and "lora_B" in name and not weight.any()
        ],
    }
    found = [f"{problem} {sorted(n)[:_NUM_NAMED]}" for problem, n in problems.items() if n]
    if found:
        raise AdapterError(
            f"{source} {' and '.join(found)}: it belongs to a recipe with another model.encoder or "
            "model.router_weight or model.router_width, or is damaged"
        )
