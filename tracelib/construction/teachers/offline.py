"""A teacher that is asked by file: requests in one, replies in another, in OpenAI's batch form.

`vllm run-batch -i REQUESTS -o REPLIES --model MODEL` takes such a file, and so do the batch
interfaces of vendors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tracelib.construction.teachers.batch_files import BatchReplies, BatchRequests, name_request
from tracelib.construction.teachers.chat_body import build_chat_body
from tracelib.construction.teachers.endpoint_reply import check_reply
from tracelib.construction.teachers.picture_parts import load_chat
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError, make_key


class OfflineTeacher:
    """Answers from a file of replies, and writes what it cannot answer to a file of requests.

    A reply is found again by its request's whole content, so one to an older prompt is never taken.
    The file of requests is whole when the teacher is left, and holds what has no reply yet.

    Args:
        requests_file: Where requests without a reply go, one JSON object a line.
        replies_file: Where replies are looked for; it need not be there yet.
        model: Model to ask for.
        served_model: Name that the replies must carry, where the server does not say `model`.
        picture_root: Folder that the requests' pictures lie in, or None if there are none; they are
            sent within the requests, as data URLs.
        max_picture_bytes: Largest picture file, 1 and above.
        max_tokens_field: Field that carries a request's `max_tokens`.
        extra_fields: Further fields of every request, such as `top_p`; they override the usual.

    Attributes:
        name: Name that the rows carry, `model`.
        key: Name and `extra_fields`.

    Raises:
        ValueError: `max_picture_bytes` is out of its range, or both files are one.
    """

    def __init__(
        self,
        requests_file: Path,
        replies_file: Path,
        model: str,
        served_model: str | None = None,
        picture_root: Path | None = None,
        max_picture_bytes: int = 10_000_000,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_fields: Mapping[str, Any] | None = None,
    ) -> None:
        if max_picture_bytes < 1:
            raise ValueError(f"max_picture_bytes is {max_picture_bytes}; allowed 1 and above")
        if requests_file.resolve() == replies_file.resolve():
            raise ValueError(f"requests_file and replies_file are both {requests_file}; two needed")
        self._requests_file, self._replies_file = requests_file, replies_file
        self._served_model = served_model or model
        self._picture_root, self._max_picture_bytes = picture_root, max_picture_bytes
        self._max_tokens_field, self._extra_fields = max_tokens_field, dict(extra_fields or {})
        self._files: tuple[BatchReplies, BatchRequests] | None = None
        self.name = model
        self.key = make_key(model, self._extra_fields)

    async def __aenter__(self) -> OfflineTeacher:
        """Look through the replies.

        Raises:
            RuntimeError: The teacher is entered already.
            ValueError: A line of the replies is no reply; the message names it.
        """
        if self._files:
            raise RuntimeError(f"teacher {self.name!r} is entered already")
        replies = await asyncio.to_thread(BatchReplies, self._replies_file)
        self._files = replies, BatchRequests(self._requests_file)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the requests without a reply in their place, unless the run was broken off."""
        files, self._files = self._files, None
        if files:
            replies, requests = files
            replies.close()
            requests.close(is_whole=kind is None)

    async def ask(self, request: Request) -> Reply:
        """Answer one request from the replies.

        Raises:
            RuntimeError: The teacher is not entered.
            TeacherError: The reply is not there (`waiting`), or is no whole answer.
        """
        if not self._files:
            raise RuntimeError(f"teacher {self.name!r} is asked outside `async with`")
        replies, requests = self._files
        body = build_chat_body(self.name, request, self._max_tokens_field, self._extra_fields)
        custom_id = name_request(request.key, body)
        if reply := replies.find(custom_id):
            return check_reply(reply, self._served_model)
        if custom_id not in requests:
            body["messages"] = await load_chat(
                request.messages, self._picture_root, self._max_picture_bytes
            )
            requests.add(custom_id, body)
        raise TeacherError(
            True,
            "waiting",
            f"have the requests in {self._requests_file} answered, put the replies into "
            f"{self._replies_file}, and run again",
        )
