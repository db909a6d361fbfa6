"""The body of a chat request, as OpenAI-compatible endpoints and batch files take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracelib.construction.teachers.teacher import Request


def build_chat_body(
    model: str, request: Request, max_tokens_field: str, extra_fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the body of a request.

    Args:
        model: Model to ask for.
        request: What is asked; its schema, if any, becomes the `response_format`.
        max_tokens_field: Field that carries `max_tokens`.
        extra_fields: Further fields, which override all others.

    >>> request = Request("a", [{"role": "user", "content": "Why?"}], 64, 0.7, 3)
    >>> list(build_chat_body("large", request, "max_completion_tokens", {"top_p": 0.9}))
    ['model', 'messages', 'max_completion_tokens', 'temperature', 'seed', 'top_p']
    """
    body = {
        "model": model,
        "messages": request.messages,
        max_tokens_field: request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    if request.schema is not None:
        schema = {"name": "reply", "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {**body, **extra_fields}
