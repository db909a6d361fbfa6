"""Loads pictures safely: inside the data root, of sane size, whole."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

MAX_PIXELS = 64 * 1024 * 1024
"""A header that claims more is refused before anything is decoded."""
MAX_ASPECT_RATIO = 200
"""Image processors of the Qwen-VL family fail beyond it."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class ImageError(ValueError):
    """A picture that cannot be used."""


def load_image(root: Path, relative_path: str) -> Image.Image:
    """Load a picture as RGB, fully decoded.

    Args:
        root: Folder that the picture must lie in, symbolic links followed.
        relative_path: Path relative to `root`.

    Raises:
        ImageError: As `open_image`, or the picture is broken or cut short.
    """
    with open_image(root, relative_path) as image:
        pixels: Image.Image = image.convert("RGB")
    return pixels


@contextmanager
def open_image(root: Path, relative_path: str) -> Iterator[Image.Image]:
    """Open a picture whose path, format and size are fine; nothing of it is decoded yet.

    Args:
        root: Folder that the picture must lie in, symbolic links followed.
        relative_path: Path relative to `root`.

    Raises:
        ImageError: The path leaves the root, the file is missing or no picture, or the picture has
            too many pixels or is too long for its width; also for what decoding it raises.
    """
    path = root / relative_path
    if not path.resolve().is_relative_to(root.resolve()):
        raise ImageError(
            f"{path}: leads to {path.resolve()}, outside the data root {root.resolve()}; "
            "move the pictures into the root, or choose a root that holds them"
        )
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_size(path, *image.size)
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(
            f"{path}: the file is missing; unpack the pictures or fix the data root"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path}: {error}; shrink the picture") from error
    except _DECODER_ERRORS as error:
        raise ImageError(
            f"{path}: no whole picture ({', '.join(_FORMATS)}): {error}; fetch the file again"
        ) from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{path}: {width} x {height} pixels are more than {MAX_PIXELS}; shrink the picture"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{path}: {width} x {height} pixels are an aspect ratio beyond {MAX_ASPECT_RATIO}; "
            "crop or pad the picture"
        )
