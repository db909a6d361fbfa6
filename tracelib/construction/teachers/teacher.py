"""What every teacher offers: a request goes in, a reply or a named failure comes out.

A message is one of OpenAI's chat form: `{"role": ..., "content": text or a list of parts}`. A part
is `{"type": "text", "text": ...}` or `{"type": "image_path", "path": ...}`, a picture below the
data root that the teacher loads when it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol

FailureKind = Literal[
    "timeout",
    "connection",
    "rate_limit",
    "server",
    "invalid_reply",
    "wrong_model",
    "empty",
    "truncated",
    "refused",
    "access",
    "rejected",
    "picture",
    "waiting",
    "unexpected",
]
"""Why a request has no reply.

The first six tell of the endpoint. `empty`, `truncated` (out of tokens) and `refused` tell of an
answer that is none. `access` is a key, an address or a model that the server does not know,
`rejected` a request that it does not take, `picture` one that cannot be sent, `waiting` one whose
reply will come later, and `unexpected` an error that nobody foresaw.
"""


@dataclass(frozen=True)
class Request:
    """A question to a teacher.

    Args:
        key: Name of the request, unique within a run.
        messages: The chat so far; see the module.
        max_tokens: Longest reply, 1 and above.
        temperature: Divides the logits, 0 and above; 0 takes the most likely token.
        seed: Seed of the reply's sampling, for teachers that take one.
        schema: JSON schema of the reply, or None for free text. A hint: a teacher that cannot hold
            to one answers freely, so whoever asks reads the reply with care.
    """

    key: str
    messages: list[dict[str, Any]]
    max_tokens: int
    temperature: float
    seed: int
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """A whole answer; one that is empty or cut short is a `TeacherError`.

    Args:
        text: What the teacher wrote.
        model: Name of the model, as the teacher says it.
        prompt_tokens: Tokens of the request, 0 where the teacher does not count.
        completion_tokens: Tokens of the reply, 0 where the teacher does not count.
        latency_seconds: From sending to the last byte, without waiting for a turn or retries.
        finish_reason: Why the teacher stopped, `stop` as a rule.
    """

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    latency_seconds: float
    finish_reason: str


class TeacherError(Exception):
    """A request that has no reply.

    Args:
        retryable: Whether the same request may succeed later.
        kind: Why there is no reply.
        message: What happened and what to change.
        retry_after_seconds: How long the server asks to wait, or None.
    """

    def __init__(
        self,
        retryable: bool,
        kind: FailureKind,
        message: str,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.kind: FailureKind = kind
        self.retry_after_seconds = retry_after_seconds


def replace_surrogates(text: str) -> str:
    r"""Return a text of a model's JSON without half characters, which no file takes.

    >>> replace_surrogates("a \ud83d star")
    'a ? star'
    """
    return text.encode("utf-8", "replace").decode()


class Teacher(Protocol):
    """Answers requests, many at a time, inside `async with`, which holds what it keeps open.

    Attributes:
        name: Name that the rows carry.
        key: What replies depend on beside the request: when it changes, older ones are stale.
    """

    @property
    def name(self) -> str:
        """Name that the rows carry."""

    @property
    def key(self) -> str:
        """What replies depend on beside the request: when it changes, older ones are stale."""

    async def __aenter__(self) -> Any:  # an own type here, and jsonargparse takes no other class
        """Open what asking needs."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; the teacher can be entered again."""

    async def ask(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            TeacherError: There is no whole answer.
        """


def make_key(model: str, options: Mapping[str, Any]) -> str:
    """Return the key of a teacher: the model, and what is set beside it.

    Args:
        model: Name of the model.
        options: JSON values of what is not as usual; their order does not count.

    >>> make_key("large", {})
    'large'
    >>> make_key("large", {"top_p": 0.9})
    'large {"top_p": 0.9}'
    """
    return f"{model} {json.dumps(options, sort_keys=True)}" if options else model
