"""The endpoint teacher before `transformers serve`, held against the teacher in this process."""

import asyncio

import pytest

from tests.construction.teachers.scenes_requests import make_request, read_hard_queries
from tests.construction.teachers.served_backbone import serve_model
from tracelib.construction.teachers.budget import RateLimits
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.in_process import EngineTeacher
from tracelib.construction.teachers.retry import RetryPolicy
from tracelib.construction.teachers.routed import RoutedTeacher
from tracelib.construction.teachers.teacher import TeacherError
from tracelib.construction.text_backbone import export_text

pytest.importorskip("openai")
pytest.importorskip("uvicorn")
ONE_AT_A_TIME = RateLimits(concurrency=1)


@pytest.fixture(scope="module")
def hard(tiny_scenes):
    return [query for query, _ in read_hard_queries(tiny_scenes)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "text_backbone"
    export_text(folder)
    return folder


@pytest.fixture(scope="module")
def address(model):
    with serve_model(model, model.parent / "server.log") as url:
        yield url


def make_endpoint(address, model, **options):
    fields = {"served_model": f"{model}@main", "retry": RetryPolicy(max_attempts=1), **options}
    return EndpointTeacher(address, str(model), **fields)


def ask(teacher, requests):
    """Ask all at once; a failure is a result."""

    async def run():
        async with teacher:
            asked = [teacher.ask(request) for request in requests]
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(run())


def describe(result):
    return str(result) if isinstance(result, TeacherError) else result.text


def test_texts_over_http_and_pictures_here_are_answered_as_by_one_model(
    tiny_scenes, hard, address, model
):
    here = EngineTeacher("embedded", tiny_scenes, device="cpu")
    routed = RoutedTeacher(make_endpoint(address, model), here)
    texts = [query for query in hard if not query["query_img_path"]][:12]
    pictures = [query for query in hard if query["query_img_path"]][:12]
    requests = [make_request(query) for query in (*texts, *pictures)]
    replies, expected = ask(routed, requests), ask(here, requests)
    assert [reply.text for reply in replies] == [reply.text for reply in expected]
    assert [reply.model for reply in replies] == [f"{model}@main"] * 12 + ["embedded"] * 12
    assert [(r.prompt_tokens, r.completion_tokens) for r in replies] == [
        (r.prompt_tokens, r.completion_tokens) for r in expected
    ]


def test_seeds_and_temperature_hold_when_it_is_asked_one_at_a_time(hard, address, model):
    texts = [query for query in hard if not query["query_img_path"]][:10]
    drawn, others = (
        [make_request(query, temperature=1.8, seed=seed) for query in texts] for seed in (1, 2)
    )
    first = ask(make_endpoint(address, model, limits=ONE_AT_A_TIME), drawn)
    again = ask(make_endpoint(address, model, limits=ONE_AT_A_TIME), drawn)
    other = ask(make_endpoint(address, model, limits=ONE_AT_A_TIME), others)
    assert list(map(describe, again)) == list(map(describe, first))
    assert list(map(describe, other)) != list(map(describe, first))


def test_schema_is_ignored_and_a_cut_reply_is_no_reply(hard, address, model):
    text = next(query for query in hard if not query["query_img_path"])
    free = make_request(text)
    held = make_request(text, schema={"type": "object"})
    short = make_request(text, max_tokens=8)
    replies = ask(make_endpoint(address, model), [free, held, short])
    assert replies[0].text == replies[1].text
    assert (replies[2].kind, replies[2].retryable) == ("truncated", False)


def test_other_models_are_named(hard, address, model):
    text = make_request(next(query for query in hard if not query["query_img_path"]))
    (unnamed,) = ask(make_endpoint(address, model, served_model=str(model)), [text])
    assert unnamed.kind == "wrong_model"
    assert "set served_model to that name" in str(unnamed)
    (pinned,) = ask(make_endpoint(address, "another"), [text])
    assert pinned.kind == "rejected"
    assert "pinned" in str(pinned)
