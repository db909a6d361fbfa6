"""The body of a request: usual fields, the schema, and what overrides them."""

import pytest

from tracelib.construction.teachers.chat_body import build_chat_body
from tracelib.construction.teachers.teacher import Request

MESSAGES = [{"role": "user", "content": "Why?"}]
SCHEMA = {"type": "object"}


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_body_has_all_that_is_asked(field):
    body = build_chat_body("large", Request("a", MESSAGES, 64, 0.5, 3), field, {})
    assert body == {
        "model": "large",
        "messages": MESSAGES,
        field: 64,
        "temperature": 0.5,
        "seed": 3,
    }


def test_schema_is_the_response_format():
    body = build_chat_body("large", Request("a", MESSAGES, 64, 0.5, 3, SCHEMA), "max_tokens", {})
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True},
    }


def test_further_fields_override_all_others():
    request = Request("a", MESSAGES, 64, 0.5, 3, SCHEMA)
    extra = {"temperature": 1.0, "response_format": {"type": "json_object"}, "top_p": 0.9}
    body = build_chat_body("large", request, "max_tokens", extra)
    assert {name: body[name] for name in extra} == extra
    assert body["seed"] == 3
