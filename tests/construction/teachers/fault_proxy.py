"""A proxy before a chat endpoint that spoils answers, by a seed and at a stated rate each."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from types import TracebackType
from typing import Any

FAULTS = ("429", "500", "timeout", "cut", "invalid_json", "wrong_model")


class FaultProxy:
    """Serves on a free port of the loopback inside `async with`.

    Which fault a request meets depends on the seed, on the request and on how often it came, never
    on what else is in flight. `silence_seconds` is how long a `timeout` keeps its connection.
    """

    def __init__(
        self,
        upstream_port: int,
        seed: int = 0,
        rate: float = 0.1,
        faults: tuple[str, ...] = FAULTS,
        silence_seconds: float = 30.0,
        retry_after: str = "0",
    ) -> None:
        self._upstream_port = upstream_port
        self._seed = seed
        self._rate = rate
        self._faults = faults
        self._silence_seconds = silence_seconds
        self._retry_after = retry_after
        self._num_seen: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**26)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def draw_fault(self, body: bytes) -> str | None:
        """Return the fault of the next time that this request comes, or None."""
        digest = hashlib.sha256(body).hexdigest()
        self._num_seen[digest] += 1
        place = random.Random(f"{self._seed}/{digest}/{self._num_seen[digest]}").random()
        number = int(place / self._rate) if self._rate else len(self._faults)
        return self._faults[number] if number < len(self._faults) else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while message := await _read_message(reader):
                head, body = message
                fault = self.draw_fault(body)
                self.counts[fault or "none"] += 1
                if not await self._answer(fault, head, body, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()

    async def _answer(
        self, fault: str | None, head: bytes, body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; return whether the connection goes on."""
        if fault == "timeout":
            await asyncio.sleep(self._silence_seconds)
            return False
        if fault == "429":
            _write(writer, 429, b'{"error": {"message": "slow down"}}', self._retry_after)
        elif fault == "500":
            _write(writer, 500, b"<html>Internal Server Error</html>")
        else:
            status, answer = await self._forward(head, body)
            if fault == "cut":
                _write(writer, status, answer, num_sent=len(answer) // 2)
                await writer.drain()
                return False
            if fault == "invalid_json":
                answer = answer[: len(answer) // 2]
            elif fault == "wrong_model":
                answer = json.dumps({**json.loads(answer), "model": "another"}).encode()
            _write(writer, status, answer)
        await writer.drain()
        return True

    async def _forward(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._upstream_port, limit=2**26
        )
        try:
            writer.write(head + b"\r\n\r\n" + body)
            answer = await _read_message(reader)
        finally:
            writer.close()
        if not answer:
            raise ConnectionError("the endpoint closed the connection")
        return int(answer[0].split(b" ", 2)[1]), answer[1]


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """Return head and body of a message with a content length, None at the connection's end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except asyncio.IncompleteReadError:
        return None
    lines = head.lower().split(b"\r\n")
    lengths = (int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    length = next(lengths, 0)
    return head, await reader.readexactly(length)


def _write(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    retry_after: str | None = None,
    num_sent: int | None = None,
) -> None:
    wait = f"retry-after: {retry_after}\r\n" if retry_after is not None else ""
    head = (
        f"HTTP/1.1 {status} Proxy\r\ncontent-type: application/json\r\n{wait}"
        f"content-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body[:num_sent])
