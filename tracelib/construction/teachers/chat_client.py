"""The way to a chat endpoint and back, through the openai package and aiohttp.

The openai package's typed method checks and copies a request and builds a model of the reply, and
its usual transport is slow with many requests in flight: together they take three times as long,
too long for one core at a thousand requests a second.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any

import aiohttp
import openai

from tracelib.construction.teachers.endpoint_reply import name_status
from tracelib.construction.teachers.retry import parse_retry_after
from tracelib.construction.teachers.teacher import TeacherError

_CONNECT_SECONDS = 10.0
_NO_KEY = "none"  # the openai package wants one


class ChatClient:
    """Posts chat requests, each once.

    Args:
        base_url: Address of the endpoint, as a rule up to `/v1`.
        api_key: Key, or None for servers without keys.
        timeout_seconds: Longest silence of the server within a request, above 0.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout_seconds: float) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        timeout = openai.Timeout(timeout_seconds, connect=_CONNECT_SECONDS)
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or _NO_KEY,
            timeout=timeout,
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(timeout=timeout),
        )

    async def close(self) -> None:
        """Close the connections; the client cannot be used again."""
        await self._client.close()

    async def post(self, fields: dict[str, Any]) -> str:
        """Post a chat request and return the body of the answer.

        Raises:
            TeacherError: The server cannot be reached, is silent, cuts the answer off, or answers
                with an error.
        """
        try:
            return await self._client.post("/chat/completions", body=fields, cast_to=str)
        except openai.APIStatusError as error:
            raise self._name_status(error) from error
        except (openai.APIConnectionError, aiohttp.ClientError) as error:
            raise self._name_break(error) from error

    def _name_status(self, error: openai.APIStatusError) -> TeacherError:
        response = error.response
        header = response.headers.get("retry-after")
        said = response.text or "an empty body"
        if self._api_key:
            said = said.replace(self._api_key, "***")
        wait = parse_retry_after(header, datetime.now(timezone.utc))
        return name_status(error.status_code, said, error.code, wait)

    def _name_break(self, error: BaseException) -> TeacherError:
        # The transport calls a connection that the server dropped a timeout too; its cause tells.
        while error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, asyncio.TimeoutError):
            message = (
                f"{self._base_url}: silent for {self._timeout_seconds:g} s, or no connection "
                f"within {_CONNECT_SECONDS:g} s; raise timeout_seconds or lower limits.concurrency"
            )
            return TeacherError(True, "timeout", message)
        message = f"{self._base_url}: {type(error).__name__}: {error}; see that the server runs"
        return TeacherError(True, "connection", message)
