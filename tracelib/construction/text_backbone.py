"""The `cot export-text` verb: the embedded backbone's language model for a server of texts."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rich.console import Console

from tracelib.models.backbone import compute_fingerprint
from tracelib.models.text_model import save_text_model

_MANIFEST = "source.json"


def export_text(output: Path = Path("runs/text_backbone"), backbone: str = "embedded") -> None:
    """Write a backbone's language model without its eyes, for any server of causal models.

    `transformers serve` needs torchvision for a model that sees, and none for this one. Of a text
    both write the same.

    Args:
        output: Folder to write. When it holds this model already, it is left alone.
        backbone: Folder or hub name of a Qwen2-VL or Qwen2.5-VL, or `embedded`.

    Raises:
        ValueError: The backbone is of another family, or `output` holds something else.
    """
    source = {"backbone": backbone, "fingerprint": compute_fingerprint(backbone)}
    if output.exists():
        manifest = output / _MANIFEST
        found = json.loads(manifest.read_text()) if manifest.exists() else None
        if found != source:
            raise ValueError(
                f"{output} holds {found or 'something else'}, asked for is the language model of "
                f"{source}; remove it or take another --output"
            )
        Console().print(f"{output} holds this model already")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        folder = Path(temporary) / "model"
        save_text_model(backbone, folder)
        (folder / _MANIFEST).write_text(json.dumps(source, indent=2) + "\n")
        folder.rename(output)
    Console().print(f"{output}: wrote the language model of {backbone}")
