"""A teacher behind an OpenAI-compatible chat endpoint: vLLM, SGLang, a vendor."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from tracelib.construction.teachers.budget import Budget, RateLimits
from tracelib.construction.teachers.chat_body import build_chat_body
from tracelib.construction.teachers.clock import SystemClock
from tracelib.construction.teachers.endpoint_reply import check_reply, parse_reply
from tracelib.construction.teachers.picture_parts import estimate_prompt_tokens, load_chat
from tracelib.construction.teachers.price import Price
from tracelib.construction.teachers.retry import RetryPolicy, ask_with_retries
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError, make_key

if TYPE_CHECKING:
    from tracelib.construction.teachers.chat_client import ChatClient

_LOGGER = logging.getLogger(__name__)
_SCHEMA_WORDS = ("response_format", "json_schema", "structured output")


@dataclass(frozen=True)
class _Session:
    """What is open while a teacher is entered."""

    client: ChatClient
    budget: Budget


class EndpointTeacher:
    """Asks a chat endpoint, again where a failure may pass.

    Args:
        base_url: Address of the endpoint, as a rule up to `/v1`.
        model: Model to ask for.
        served_model: Name that the replies must carry, where the server does not say `model`.
        picture_root: Folder that the requests' pictures lie in, or None if there are none.
        api_key_variable: Environment variable that holds the key, or None for servers without one.
        timeout_seconds: Longest silence of the server within a request, above 0.
        max_picture_bytes: Largest picture file, 1 and above.
        max_tokens_field: Field that carries a request's `max_tokens`.
        extra_fields: Further fields of every request, such as `top_p`; they override the usual.
        limits: How much may be asked at a time and in a minute.
        retry: When and how often a request is asked again.
        price: Price of the tokens.

    Attributes:
        name: Name that the rows carry, `model`.
        key: Name and `extra_fields`.
        served_model: Name that the replies carry.
        limits: As given.
        price: As given.

    Raises:
        ImportError: The openai package or aiohttp is not installed.
        ValueError: A number is out of its range, or the key's variable is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        served_model: str | None = None,
        picture_root: Path | None = None,
        api_key_variable: str | None = None,
        timeout_seconds: float = 120.0,
        max_picture_bytes: int = 10_000_000,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_fields: Mapping[str, Any] | None = None,
        limits: RateLimits = RateLimits(),
        retry: RetryPolicy = RetryPolicy(),
        price: Price = Price(),
    ) -> None:
        if not timeout_seconds > 0:
            raise ValueError(f"timeout_seconds is {timeout_seconds}; allowed above 0")
        if max_picture_bytes < 1:
            raise ValueError(f"max_picture_bytes is {max_picture_bytes}; allowed 1 and above")
        self._make_client = _import_client()
        self._base_url = base_url
        self.served_model = served_model or model
        self._picture_root = picture_root
        self._api_key = _read_key(api_key_variable)
        self._timeout_seconds = timeout_seconds
        self._max_picture_bytes = max_picture_bytes
        self._max_tokens_field = max_tokens_field
        self._extra_fields = dict(extra_fields or {})
        self._retry = retry
        self._takes_schema = True
        self._clock = SystemClock()
        self._session: _Session | None = None
        self.name = model
        self.key = make_key(model, self._extra_fields)
        self.limits = limits
        self.price = price

    async def __aenter__(self) -> EndpointTeacher:
        """Open the client.

        Raises:
            RuntimeError: It is open.
        """
        if self._session:
            raise RuntimeError(f"teacher {self.name!r} is entered already")
        client = self._make_client(self._base_url, self._api_key, self._timeout_seconds)
        self._session = _Session(client, Budget(self.limits, self._clock))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client; the teacher can be entered again."""
        session, self._session = self._session, None
        if session:
            await session.client.close()

    async def ask(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            RuntimeError: The teacher is not entered.
            TeacherError: There is no whole answer, after all attempts.
        """
        session = self._session
        if not session:
            raise RuntimeError(f"teacher {self.name!r} is asked outside `async with`")
        messages = await load_chat(request.messages, self._picture_root, self._max_picture_bytes)
        num_reserved = estimate_prompt_tokens(request.messages) + request.max_tokens

        async def attempt(request: Request) -> Reply:
            return await self._attempt(session, request, num_reserved)

        loaded = replace(request, messages=messages)
        return await ask_with_retries(attempt, loaded, self._retry, self._clock)

    async def _attempt(self, session: _Session, request: Request, num_reserved: int) -> Reply:
        if request.schema is not None and self._takes_schema:
            try:
                return await self._send(session, request, num_reserved)
            except TeacherError as error:
                if not _is_about_schema(error):
                    raise
                self._give_up_schema(error)
        return await self._send(session, replace(request, schema=None), num_reserved)

    async def _send(self, session: _Session, request: Request, num_reserved: int) -> Reply:
        fields = build_chat_body(self.name, request, self._max_tokens_field, self._extra_fields)
        async with session.budget.admit(num_reserved):
            started = time.perf_counter()
            body = await session.client.post(fields)
            latency_seconds = time.perf_counter() - started
        reply = parse_reply(body, latency_seconds)
        num_used = reply.prompt_tokens + reply.completion_tokens
        if num_used:
            session.budget.settle(num_reserved, num_used)
        return check_reply(reply, self.served_model)

    def _give_up_schema(self, error: TeacherError) -> None:
        if self._takes_schema:
            self._takes_schema = False
            _LOGGER.warning("%s takes no reply schema and answers freely: %s", self.name, error)


def _is_about_schema(error: TeacherError) -> bool:
    message = str(error).lower()
    return error.kind == "rejected" and any(word in message for word in _SCHEMA_WORDS)


def _import_client() -> type[ChatClient]:
    try:
        from tracelib.construction.teachers.chat_client import ChatClient
    except ModuleNotFoundError as error:
        if error.name not in ("openai", "aiohttp"):
            raise
        raise ImportError(
            f"an endpoint teacher needs the package {error.name}: pip install 'tracelib[cot]'"
        ) from error
    return ChatClient


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise ValueError(
            f"environment variable {variable} is not set; put the endpoint's key into it, or set "
            "api_key_variable to null if the server asks for none"
        )
    return key
