"""A teacher without a model: it answers by a function of the request, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tracelib.construction.teachers.teacher import Reply, Request, TeacherError

RATIONALE = "<reasoning>The query asks for one thing alone.</reasoning><answer>{}</answer>"


def read_text(request: Request) -> str:
    """Return the words of a request's last message."""
    content = request.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", part.get("path", "")) for part in content)


def write_rationale(request: Request) -> str:
    """Return a rationale that tells request and seed."""
    return RATIONALE.format(f"{read_text(request)} / seed {request.seed}")


class RuleTeacher:
    """Answers by a function, which may return a failure, and keeps what it was asked."""

    def __init__(
        self,
        answer: Callable[[Request], str | TeacherError] = write_rationale,
        name: str = "rule",
        key: str | None = None,
    ) -> None:
        self.answer, self.name, self.key = answer, name, key or name
        self.requests: list[Request] = []
        self.num_entered = self.num_in_flight = self.most_in_flight = 0

    async def __aenter__(self) -> Any:
        self.num_entered += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.num_entered

    async def ask(self, request: Request) -> Reply:
        self.requests.append(request)
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            # Later requests overtake earlier ones, as they do at a real endpoint.
            for _ in range(1 + len(self.requests) % 3):
                await asyncio.sleep(0)
        finally:
            self.num_in_flight -= 1
        return self.reply(request)

    def reply(self, request: Request) -> Reply:
        """Answer at once."""
        answer = self.answer(request)
        if isinstance(answer, TeacherError):
            raise answer
        return Reply(answer, self.name, 10, 5, 0.01, "stop")
