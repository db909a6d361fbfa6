"""What answers mean: only a whole reply of the right model is one."""

import json

import pytest

from tests.construction.teachers.stub_endpoint import complete
from tracelib.construction.teachers.endpoint_reply import check_reply, name_status, parse_reply
from tracelib.construction.teachers.teacher import Reply, TeacherError


def test_completion_is_read():
    body = complete("a star", prompt_tokens=7, completion_tokens=3).body.decode()
    assert parse_reply(body, 0.5) == Reply("a star", "stub", 7, 3, 0.5, "stop")


def test_counts_may_be_missing_but_not_wrong():
    fields = json.loads(complete("a").body)
    assert parse_reply(json.dumps({**fields, "usage": None}), 0.0).prompt_tokens == 0
    with pytest.raises(TeacherError, match="token counts"):
        parse_reply(json.dumps({**fields, "usage": {"prompt_tokens": "7"}}), 0.0)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        complete("a").body.decode()[:-9],
        "[]",
        "null",
        '{"choices": []}',
        '{"error": {"message": "overloaded"}}',
        '{"model": "stub", "choices": [{"message": {"content": ["a"]}, "finish_reason": "stop"}]}',
        '{"model": "stub", "choices": [{"message": {"content": "a"}, "finish_reason": null}]}',
        '{"model": null, "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}',
        complete("half of \ud83d").body.decode(),
        '{"model": "stub", "choices": [{"message": null, "finish_reason": "stop"}]}',
    ],
)
def test_what_is_no_completion_is_asked_again(body):
    with pytest.raises(TeacherError, match="no chat completion") as caught:
        parse_reply(body, 0.0)
    assert (caught.value.kind, caught.value.retryable) == ("invalid_reply", True)


@pytest.mark.parametrize(
    ("text", "model", "finish_reason", "kind", "retryable"),
    [
        ("a", "other", "stop", "wrong_model", True),
        ("a", "stub", "length", "truncated", False),
        ("", "stub", "length", "truncated", False),
        ("a", "stub", "content_filter", "refused", False),
        ("a", "stub", "abort", "invalid_reply", True),
        ("", "stub", "stop", "empty", True),
        (" \n", "stub", "stop", "empty", True),
    ],
)
def test_reply_that_is_none_has_a_name(text, model, finish_reason, kind, retryable):
    with pytest.raises(TeacherError) as caught:
        check_reply(Reply(text, model, 1, 1, 0.0, finish_reason), "stub")
    assert (caught.value.kind, caught.value.retryable) == (kind, retryable)


def test_whole_reply_passes():
    reply = Reply("a", "stub", 1, 1, 0.0, "stop")
    assert check_reply(reply, "stub") is reply


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "hint"),
    [
        (302, "rejected", False, "extra_fields"),
        (400, "rejected", False, "extra_fields"),
        (401, "access", False, "api_key_variable"),
        (402, "access", False, "pay"),
        (403, "access", False, "key"),
        (404, "access", False, "base_url"),
        (405, "access", False, "base_url"),
        (408, "server", True, ""),
        (409, "server", True, ""),
        (413, "rejected", False, "max_picture_bytes"),
        (422, "rejected", False, "extra_fields"),
        (429, "rate_limit", True, ""),
        (500, "server", True, ""),
        (501, "rejected", False, "extra_fields"),
        (502, "server", True, ""),
        (503, "server", True, ""),
        (529, "server", True, ""),
    ],
)
def test_status_has_its_name_and_what_to_change(status, kind, retryable, hint):
    error = name_status(status, "the server's words", None, 3.0)
    assert (error.kind, error.retryable) == (kind, retryable)
    assert error.retry_after_seconds == (3.0 if retryable else None)
    assert f"{status}: the server's words" in str(error)
    assert hint in str(error)


def test_spent_account_is_not_asked_again():
    error = name_status(429, "You exceeded your quota", "insufficient_quota")
    assert (error.kind, error.retryable) == ("access", False)


def test_long_answers_are_quoted_in_part():
    assert len(str(name_status(500, "x" * 100_000))) < 400
