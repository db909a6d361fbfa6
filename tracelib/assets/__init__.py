"""The embedded backbone, a tiny Qwen2.5-VL that ships with the package; its card is README.md."""

from __future__ import annotations

from pathlib import Path

EMBEDDED_BACKBONE = "embedded"
"""The name recipes use for it."""


def resolve_backbone(backbone: str) -> str:
    """Return the folder or hub name behind a recipe's `backbone`."""
    return str(Path(__file__).parent) if backbone == EMBEDDED_BACKBONE else backbone
