"""Requests go to whoever can answer them."""

import asyncio

import pytest

from tracelib.construction.teachers.routed import RoutedTeacher
from tracelib.construction.teachers.teacher import Reply, Request

TEXT = {"type": "text", "text": "What?"}
PICTURE = {"type": "image_path", "path": "a.png"}


class Named:
    """Answers with its own name, while it is open."""

    def __init__(self, name, opens=True):
        self.name, self.key, self.opens = name, f"{name} key", opens
        self.num_open = self.num_opened = 0

    async def __aenter__(self):
        if not self.opens:
            raise ValueError("no model")
        self.num_open += 1
        self.num_opened += 1
        return self

    async def __aexit__(self, kind, error, trace):
        self.num_open -= 1

    async def ask(self, request):
        assert self.num_open == 1
        return Reply(request.key, self.name, 1, 1, 0.0, "stop")


def make_request(*contents):
    messages = [{"role": "user", "content": content} for content in contents]
    return Request("1", messages, 8, 0.0, 0)


def run(text, pictures, *requests):
    async def inner():
        teacher = RoutedTeacher(text, pictures)
        async with teacher:
            return [(await teacher.ask(request)).model for request in requests]

    return asyncio.run(inner())


def test_pictures_go_to_who_sees_and_words_to_who_reads():
    text, pictures = Named("reads"), Named("sees")
    requests = [
        make_request("words"),
        make_request([TEXT, PICTURE]),
        make_request([TEXT]),
        make_request([PICTURE], "words"),
    ]
    assert run(text, pictures, *requests) == ["reads", "sees", "reads", "sees"]
    assert (text.num_open, pictures.num_open) == (0, 0)
    assert RoutedTeacher(text, pictures).name == "reads | sees"


def test_one_teacher_in_both_places_is_opened_once():
    both = Named("both")
    assert run(both, both, make_request("words"), make_request([PICTURE])) == ["both", "both"]
    assert (both.num_open, both.num_opened) == (0, 1)
    assert RoutedTeacher(both, both).name == "both"


def test_what_cannot_be_opened_leaves_nothing_open():
    text = Named("reads")
    with pytest.raises(ValueError, match="no model"):
        run(text, Named("sees", opens=False), make_request("words"))
    assert (text.num_open, text.num_opened) == (0, 1)


def test_it_is_entered_once_at_a_time():
    async def inner():
        teacher = RoutedTeacher(Named("reads"), Named("sees"))
        for _ in range(2):
            async with teacher:
                with pytest.raises(RuntimeError, match="entered already"):
                    await teacher.__aenter__()

    asyncio.run(inner())
