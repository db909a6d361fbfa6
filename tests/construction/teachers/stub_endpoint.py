"""A chat endpoint of fixed latency, in this process or, run as a script, in one of its own.

    python stub_endpoint.py LATENCY_SECONDS

prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

MODEL = "stub"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `num_sent` cuts its body off and the connection with it."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    num_sent: int | None = None
    latency_seconds: float = 0.0


def complete(text: str, model: str = MODEL, finish_reason: str = "stop", **usage: int) -> Answer:
    """Return a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    counts = {"prompt_tokens": 10, "completion_tokens": 5, **usage}
    fields = {"object": "chat.completion", "model": model, "choices": [choice], "usage": counts}
    return Answer(json.dumps(fields).encode())


def echo(request: dict[str, Any]) -> Answer:
    """Answer a request by its last text and its seed, so that rows can be compared."""
    return complete(f"{request['messages'][-1]['content']} / seed {request['seed']}")


class StubEndpoint:
    """Serves on a free port of the loopback inside `async with`, answering by a function."""

    def __init__(
        self, answer: Callable[[dict[str, Any]], Answer] = echo, latency_seconds: float = 0.0
    ) -> None:
        self.answer = answer
        self.latency_seconds = latency_seconds
        self.requests: list[dict[str, Any]] = []
        self.num_requests = 0
        self.num_in_flight = 0
        self.most_in_flight = 0
        self.keeps_requests = True

    async def __aenter__(self) -> StubEndpoint:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
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


class _Connection(asyncio.Protocol):
    def __init__(self, endpoint: StubEndpoint) -> None:
        self._endpoint = endpoint
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, gap, body = self._received.partition(b"\r\n\r\n")
        if not gap:
            return
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        if len(body) < length:
            return
        self._received = b""
        endpoint = self._endpoint
        request = json.loads(body)
        endpoint.num_requests += 1
        if endpoint.keeps_requests:
            headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:])
            endpoint.requests.append({**request, "headers": headers})
        endpoint.num_in_flight += 1
        endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.num_in_flight)
        answer = endpoint.answer(request)
        latency = endpoint.latency_seconds + answer.latency_seconds
        asyncio.get_running_loop().call_later(latency, self._send, answer)

    def _send(self, answer: Answer) -> None:
        self._endpoint.num_in_flight -= 1
        headers = {
            "content-type": "application/json",
            "content-length": str(len(answer.body)),
            **answer.headers,
        }
        lines = [f"HTTP/1.1 {answer.status} Stub", *(f"{k}: {v}" for k, v in headers.items())]
        self._transport.write(
            "\r\n".join([*lines, "", ""]).encode() + answer.body[: answer.num_sent]
        )
        if answer.num_sent is not None:
            self._transport.close()


async def _serve(latency_seconds: float) -> None:
    async with StubEndpoint(latency_seconds=latency_seconds) as endpoint:
        endpoint.keeps_requests = False
        sys.stdout.write(f"{endpoint.port}\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
