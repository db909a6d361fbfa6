"""The two files of a batch in OpenAI's form: its requests, and what became of them."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from tracelib.construction.teachers.endpoint_reply import name_status, parse_reply
from tracelib.construction.teachers.teacher import Reply
from tracelib.retrieval.whole_files import replace_whole

_URL = "/v1/chat/completions"
_MAX_KEY = 40  # with the digest no more than the 64 characters that some vendors allow
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def name_request(key: str, fields: dict[str, Any]) -> str:
    """Return the `custom_id` of a request: its key, and a digest of all that it asks.

    >>> name_request("10:7/0", {"seed": 1})
    '10-7-0-a4bbadc1c78966d2'
    """
    content = json.dumps(fields, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return f"{_UNSAFE.sub('-', key)[:_MAX_KEY]}-{digest}"


class BatchRequests:
    """Writes the requests of a batch; their file is there when all are in it, or not at all.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: set[str] = set()
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def __contains__(self, custom_id: str) -> bool:
        return custom_id in self._names

    def add(self, custom_id: str, fields: dict[str, Any]) -> None:
        """Write a request."""
        if not self._file:
            partial = self._stack.enter_context(replace_whole(self._path))
            self._file = self._stack.enter_context(partial.open("wb"))
        line = {"custom_id": custom_id, "method": "POST", "url": _URL, "body": fields}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._names.add(custom_id)

    def close(self, is_whole: bool) -> None:
        """Put the file in its place; leave an older one if this one is not whole, or empty."""
        if is_whole:
            self._stack.close()
            return
        error = InterruptedError("broken off")
        self._stack.__exit__(InterruptedError, error, None)


class BatchReplies:
    """Finds replies by the name of their request, and holds no more than their places.

    Args:
        path: The file; one that is not there has no replies.

    Raises:
        ValueError: A line is no line of a batch's replies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        self._file: BinaryIO | None = None
        if not path.exists():
            return
        with ExitStack() as on_error:
            file = on_error.enter_context(path.open("rb"))
            place = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._places[self._read_name(line, number)] = place  # the last one counts
                place += len(line)
            on_error.pop_all()
        self._file = file

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def find(self, custom_id: str) -> Reply | None:
        """Return the reply to a request; None if it is not there or may come the next time.

        Raises:
            TeacherError: The server did not take the request, or its answer is no reply.
        """
        place = self._places.get(custom_id)
        if place is None or self._file is None:
            return None
        self._file.seek(place)
        return _read_reply(self._file.readline())

    def _read_name(self, line: bytes, number: int) -> str:
        try:
            custom_id = json.loads(line)["custom_id"]
            if not isinstance(custom_id, str):
                raise TypeError(f"custom_id {custom_id!r} is no text")
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{self._path}, line {number}: no line of a batch's replies "
                f"({type(error).__name__}: {error}); fetch the file again, or take it away"
            ) from error
        return custom_id


def _read_reply(line: bytes) -> Reply | None:
    answer = json.loads(line)
    response = answer.get("response") or {}
    status = response.get("status_code", 200 if response else 500)
    if status == 200:
        return parse_reply(json.dumps(response.get("body")), latency_seconds=0.0)
    failure = name_status(int(status), json.dumps(answer.get("error") or response.get("body")))
    if failure.retryable:
        return None
    raise failure
