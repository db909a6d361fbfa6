"""How a run's checkpoint is written: whole, and with the adapter file that evaluation reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from tracelib.models.adapter_file import write_adapter
from tracelib.retrieval.whole_files import replace_whole


def find_checkpoint(run: Path) -> Path:
    """Return the path of a run's last checkpoint, which is for resuming only."""
    return run / "checkpoints" / "last.ckpt"


def find_adapter(run: Path) -> Path:
    """Return the path of a run's trained weights, which is all that evaluation needs."""
    return run / "adapter.safetensors"


class AdapterCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint beside the old one, which it then replaces.

    Lightning's own way writes to the system's folder for temporary files; moved to another disk,
    a checkpoint is for a while half a file.

    Args:
        run: The folder whose last checkpoint comes with an adapter file.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; before the run's last one, its trained weights."""
        if Path(path) == find_checkpoint(self.run):
            weights, fingerprint = checkpoint["state_dict"], checkpoint["backbone_fingerprint"]
            write_adapter(find_adapter(self.run), weights, fingerprint, checkpoint["global_step"])
        with replace_whole(Path(path)) as partial:
            torch.save(checkpoint, partial)
