"""Two teachers in one: whoever reads only and whoever sees."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType

from tracelib.construction.teachers.picture_parts import has_pictures
from tracelib.construction.teachers.teacher import Reply, Request, Teacher


class RoutedTeacher:
    """Sends requests with pictures to one teacher and all others to another.

    Args:
        text: Answers requests without pictures.
        pictures: Answers requests with pictures.

    Attributes:
        text: As given.
        pictures: As given.
        name: Names of both, of one if they are the same.
        key: Keys of both, likewise.
    """

    def __init__(self, text: Teacher, pictures: Teacher) -> None:
        self.text, self.pictures = text, pictures
        self._stack: AsyncExitStack | None = None
        self.name = " | ".join(dict.fromkeys((text.name, pictures.name)))
        self.key = " | ".join(dict.fromkeys((text.key, pictures.key)))

    async def __aenter__(self) -> RoutedTeacher:
        """Open both.

        Raises:
            RuntimeError: They are open.
        """
        if self._stack:
            raise RuntimeError(f"teacher {self.name!r} is entered already")
        async with AsyncExitStack() as stack:
            for teacher in dict.fromkeys((self.text, self.pictures)):  # perhaps the same one
                await stack.enter_async_context(teacher)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close both; they can be entered again."""
        stack, self._stack = self._stack, None
        if stack:
            await stack.__aexit__(kind, error, trace)

    async def ask(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            TeacherError: There is no whole answer.
        """
        is_seen = has_pictures(request.messages)
        return await (self.pictures if is_seen else self.text).ask(request)
