"""Pictures of a request as data URLs, the form in which chat endpoints take them."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

from tracelib.construction.teachers.teacher import TeacherError
from tracelib.data.images import ImageError, open_image

_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_PICTURE = 300
_MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # what several JPEG pictures in one file are to PIL
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}

Message = dict[str, Any]
"""A message of a chat, as `Request` has it."""


def estimate_prompt_tokens(messages: list[Message]) -> int:
    """Return roughly how many tokens a chat has, before the server has counted them.

    >>> estimate_prompt_tokens([{"role": "user", "content": "a red star on the moon"}])
    5
    """
    num_characters = num_pictures = 0
    for message in messages:
        if isinstance(message["content"], str):
            num_characters += len(message["content"])
            continue
        for part in message["content"]:
            num_characters += len(part.get("text", ""))
            num_pictures += part["type"] == "image_path"
    return num_characters // _CHARACTERS_PER_TOKEN + num_pictures * _TOKENS_PER_PICTURE


def has_pictures(messages: list[Message]) -> bool:
    """Return whether a message has a picture to be loaded."""
    return any(
        part["type"] == "image_path"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )


async def load_chat(messages: list[Message], root: Path | None, max_bytes: int) -> list[Message]:
    """Return the messages as they are sent, their pictures read in a thread.

    Args:
        messages: The chat, as `Request` has it; it is left alone.
        root: Folder that the pictures must lie in, or None if there are none.
        max_bytes: Largest file.

    Raises:
        TeacherError: There is a picture and no root, or as `load_pictures` has it.
    """
    if not has_pictures(messages):
        return messages
    if root is None:
        raise TeacherError(False, "picture", "the request has pictures; set picture_root")
    # In a thread: a slow disk holds up this request only.
    return await asyncio.to_thread(load_pictures, messages, root, max_bytes)


def load_pictures(messages: list[Message], root: Path, max_bytes: int) -> list[Message]:
    """Return the messages with each picture's file in place of its path.

    Args:
        messages: The chat, as `Request` has it; it is left alone.
        root: Folder that the pictures must lie in, symbolic links followed.
        max_bytes: Largest file.

    Raises:
        TeacherError: A picture leaves the root, is missing, too large or no picture.
    """
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [_load_part(part, root, max_bytes) for part in message["content"]],
        }
        for message in messages
    ]


def _load_part(part: dict[str, Any], root: Path, max_bytes: int) -> dict[str, Any]:
    if part["type"] != "image_path":
        return part
    try:
        url = _read_data_url(root, part["path"], max_bytes)
    except (ImageError, OSError) as error:
        raise TeacherError(False, "picture", str(error)) from error
    return {"type": "image_url", "image_url": {"url": url}}


def _read_data_url(root: Path, relative_path: str, max_bytes: int) -> str:
    path = root / relative_path
    with open_image(root, relative_path) as image:
        media_type = _MEDIA_TYPES[str(image.format)]
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ImageError(
            f"{path}: the file has more than {max_bytes} bytes; "
            "shrink the picture or raise max_picture_bytes"
        )
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
