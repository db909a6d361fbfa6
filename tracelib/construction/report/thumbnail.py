"""Small copies of pictures, as data URLs that a page can hold."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tracelib.data.images import load_image

_SIDE = 256
_SMALL_SIDE = 96
_QUALITY = 78


@dataclass(frozen=True)
class Thumbnail:
    """A small picture.

    Args:
        url: It, as a data URL.
        width: Its width in pixels.
        height: Its height in pixels.
        is_tiny: Whether it is a whole picture so small that it is to be shown enlarged.
    """

    url: str
    width: int
    height: int
    is_tiny: bool


def make_thumbnail(root: Path, relative_path: str) -> Thumbnail | None:
    """Return a small copy of a picture, or None if it cannot be read.

    A drawing of a few pixels stays as it is, for JPEG would blur it.

    Args:
        root: Folder that the picture must lie in.
        relative_path: Path relative to `root`.
    """
    try:
        picture = load_image(root, relative_path)
    except (ValueError, OSError):  # of the picture, or of a path that is none
        return None
    is_tiny = max(picture.size) <= _SMALL_SIDE
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if is_tiny:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    kind = "png" if is_tiny else "jpeg"
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/{kind};base64,{code}", *picture.size, is_tiny)
