"""What an endpoint's answers mean: a reply, or a failure with its name and what to change."""

from __future__ import annotations

import json

from tracelib.construction.teachers.teacher import FailureKind, Reply, TeacherError

_MAX_QUOTE = 300
_PASSING_STATUSES = (408, 409, 425, 429)
_NOT_IMPLEMENTED = 501
_SPENT_CODES = ("insufficient_quota", "billing_hard_limit_reached")
_HINTS = {
    401: "set the environment variable that api_key_variable names to a valid key",
    402: "pay the account, or ask another endpoint",
    403: "the key may not use this model or address; check it and `model`",
    404: "check base_url, which as a rule ends in /v1, and `model`",
    405: "check base_url, which as a rule ends in /v1",
    413: "the request is too large; lower max_picture_bytes or shorten the prompt",
}
_REJECTED_HINT = (
    "the server does not take the request; shorten it, lower max_tokens, or set extra_fields "
    "as the server wants them"
)


def name_status(
    status: int, message: str, code: str | None = None, retry_after_seconds: float | None = None
) -> TeacherError:
    """Return the failure that an HTTP status of 300 and above means.

    Args:
        status: The status.
        message: What the server says.
        code: The server's own name of the error, or None.
        retry_after_seconds: How long the server asks to wait, or None.
    """
    said = f"status {status}: {quote(message)}"
    if status == 429 and code in _SPENT_CODES:
        return TeacherError(False, "access", f"{said}; {_HINTS[402]}")
    if status in _PASSING_STATUSES or (status >= 500 and status != _NOT_IMPLEMENTED):
        kind: FailureKind = "rate_limit" if status == 429 else "server"
        return TeacherError(True, kind, said, retry_after_seconds)
    kind = "access" if status in (401, 402, 403, 404, 405) else "rejected"
    return TeacherError(False, kind, f"{said}; {_HINTS.get(status, _REJECTED_HINT)}")


def parse_reply(body: str, latency_seconds: float) -> Reply:
    """Read the body of a chat completion; its text may be empty.

    Raises:
        TeacherError: It is no JSON, no chat completion, or its text is no Unicode.
    """
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text, finish_reason = choice["message"].get("content"), choice["finish_reason"]
        usage = answer.get("usage") or {}
        model = answer["model"]
        counts = [usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _invalid(body, f"{type(error).__name__} {error}") from error
    if not all(isinstance(value, str) for value in (text or "", finish_reason, model)):
        raise _invalid(body, "content, finish_reason and model must be texts")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise _invalid(body, "token counts must be integers, 0 and above")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # half a character, as JSON may have it: no file takes it
        raise _invalid(body, f"content is no text: {error}") from error
    return Reply(text or "", model, counts[0], counts[1], latency_seconds, finish_reason)


def check_reply(reply: Reply, model: str) -> Reply:
    """Return a reply that is whole and from the right model.

    Raises:
        TeacherError: Another model wrote it, or it is cut short, refused or empty.
    """
    if reply.model != model:
        raise TeacherError(
            True,
            "wrong_model",
            f"the reply is from model {reply.model!r}, not {model!r}; if that is how the server "
            "calls it, set served_model to that name",
        )
    if reply.finish_reason == "length":
        raise TeacherError(
            False,
            "truncated",
            f"the reply is cut after {reply.completion_tokens} tokens; raise max_tokens",
        )
    if reply.finish_reason == "content_filter":
        raise TeacherError(False, "refused", "the server's content filter held the reply back")
    if reply.finish_reason != "stop":
        raise TeacherError(
            True, "invalid_reply", f"finish_reason is {reply.finish_reason!r}, not 'stop'"
        )
    if not reply.text.strip():
        raise TeacherError(
            True,
            "empty",
            f"the reply is empty after {reply.completion_tokens} tokens; a server that keeps a "
            "model's thoughts apart from its answer may need more max_tokens",
        )
    return reply


def quote(said: str) -> str:
    r"""Return what a server said on one line of bounded length.

    >>> quote("Internal\n  error")
    'Internal error'
    """
    line = " ".join(said.split())
    return line if len(line) <= _MAX_QUOTE else f"{line[:_MAX_QUOTE]}..."


def _invalid(body: str, reason: str) -> TeacherError:
    said = quote(body[: 4 * _MAX_QUOTE])
    return TeacherError(True, "invalid_reply", f"no chat completion ({reason}): {said!r}")
