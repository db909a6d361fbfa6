"""The endpoint teacher before a real server of the loopback, whole and spoilt."""

import asyncio
import base64
import json
import logging
import socket
import subprocess
import sys

import pytest
from PIL import Image

from tests.construction.teachers.fault_proxy import FAULTS, FaultProxy
from tests.construction.teachers.stub_endpoint import Answer, StubEndpoint, complete, echo
from tracelib.construction.teachers.budget import RateLimits
from tracelib.construction.teachers.dispatch import run_requests
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.retry import RetryPolicy
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError

pytest.importorskip("openai")

AT_ONCE = RetryPolicy(max_attempts=3, base_seconds=0.0)
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}}, "required": ["z"]}


def make_request(number=0, **changes):
    fields = {
        "key": f"1:{number}/0",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "max_tokens": 32,
        "temperature": 0.5,
        "seed": 1000 + number,
    }
    return Request(**{**fields, **changes})


def ask(endpoint, *requests, **options):
    """Ask a teacher before the endpoint one request after another; a failure is a result."""

    async def run():
        results = []
        async with endpoint:
            teacher = EndpointTeacher(endpoint.url, "stub", **{"retry": AT_ONCE, **options})
            async with teacher:
                for request in requests:
                    try:
                        results.append(await teacher.ask(request))
                    except TeacherError as error:
                        results.append(error)
        return [teacher, *results]

    return asyncio.run(run())


def answer_in_turn(*answers):
    """Return an answering function; an exhausted one would fail."""
    left = iter(answers)
    return lambda request: next(left)


def refuse(message, status=400, **error):
    return Answer(json.dumps({"error": {"message": message, **error}}).encode(), status)


def test_request_arrives_as_it_is_and_the_reply_is_whole():
    endpoint = StubEndpoint(latency_seconds=0.02)
    _, reply = ask(endpoint, make_request(7), extra_fields={"top_p": 0.9})
    (received,) = endpoint.requests
    headers = received.pop("headers")
    assert headers["authorization" if "authorization" in headers else "Authorization"]
    assert received == {
        "model": "stub",
        "messages": [{"role": "user", "content": "question 7"}],
        "max_tokens": 32,
        "temperature": 0.5,
        "seed": 1007,
        "top_p": 0.9,
    }
    assert reply.text == "question 7 / seed 1007"
    assert (reply.model, reply.prompt_tokens, reply.completion_tokens) == ("stub", 10, 5)
    assert reply.finish_reason == "stop"
    assert 0.02 <= reply.latency_seconds < 5


def test_limit_of_tokens_may_have_the_newer_name():
    endpoint = StubEndpoint()
    ask(endpoint, make_request(), max_tokens_field="max_completion_tokens")
    assert endpoint.requests[0]["max_completion_tokens"] == 32
    assert "max_tokens" not in endpoint.requests[0]


def test_picture_arrives_as_its_file(tmp_path):
    Image.new("RGB", (9, 5), "green").save(tmp_path / "a.png")
    parts = [{"type": "image_path", "path": "a.png"}, {"type": "text", "text": "What?"}]
    request = make_request(messages=[{"role": "user", "content": parts}])
    endpoint = StubEndpoint(lambda request: complete("a square"))
    _, reply = ask(endpoint, request, picture_root=tmp_path)
    assert reply.text == "a square"
    sent = endpoint.requests[0]["messages"][0]["content"]
    head, content = sent[0]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content) == (tmp_path / "a.png").read_bytes()
    assert sent[1] == parts[1]


def test_picture_without_a_root_and_outside_of_it_never_leaves_the_house(tmp_path):
    endpoint = StubEndpoint()
    parts = [{"type": "image_path", "path": "../a.png"}]
    request = make_request(messages=[{"role": "user", "content": parts}])
    _, rootless = ask(endpoint, request)
    _, outside = ask(endpoint, request, picture_root=tmp_path)
    assert (rootless.kind, outside.kind) == ("picture", "picture")
    assert "picture_root" in str(rootless)
    assert "outside the data root" in str(outside)
    assert endpoint.num_requests == 0


def test_key_comes_from_the_environment_and_is_never_repeated(monkeypatch):
    monkeypatch.setenv("STUB_KEY", "sk-very-secret")
    endpoint = StubEndpoint(lambda request: refuse("bad key sk-very-secret", 401))
    _, error = ask(endpoint, make_request(), api_key_variable="STUB_KEY")
    headers = {name.lower(): text for name, text in endpoint.requests[0]["headers"].items()}
    assert headers["authorization"] == "Bearer sk-very-secret"
    assert (error.kind, error.retryable) == ("access", False)
    assert "secret" not in str(error)
    assert "api_key_variable" in str(error)


def test_without_a_key_the_server_is_quoted_as_it_is():
    _, error = ask(StubEndpoint(lambda request: refuse("none of the models")), make_request())
    assert "none of the models" in str(error)


def test_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("STUB_KEY", raising=False)
    with pytest.raises(ValueError, match="variable STUB_KEY is not set"):
        EndpointTeacher("http://127.0.0.1:9/v1", "stub", api_key_variable="STUB_KEY")


@pytest.mark.parametrize(
    "spoilt",
    [
        refuse("slow down", 429),
        Answer(b"<html>oops", 500),
        Answer(b"", 503),
        Answer(complete("a").body, num_sent=30),
        Answer(complete("a").body, num_sent=0),
        Answer(complete("a").body[:40]),
        complete("a", model="another"),
        complete(""),
        complete("a", finish_reason="abort"),
        Answer(b"{}", latency_seconds=0.6),
    ],
    ids=lambda answer: f"{answer.status}-{answer.num_sent}-{len(answer.body)}",
)
def test_fault_that_passes_is_asked_again(spoilt):
    endpoint = StubEndpoint(answer_in_turn(spoilt, spoilt, complete("a star")))
    _, reply = ask(endpoint, make_request(), timeout_seconds=0.2)
    assert reply.text == "a star"
    assert endpoint.num_requests == 3
    assert endpoint.requests[0]["seed"] == endpoint.requests[2]["seed"]


@pytest.mark.parametrize(
    ("spoilt", "kind"),
    [
        (refuse("slow down", 429), "rate_limit"),
        (Answer(b"", 503), "server"),
        (Answer(complete("a").body, num_sent=30), "connection"),
        (Answer(complete("a").body[:40]), "invalid_reply"),
        (complete("a", model="another"), "wrong_model"),
        (complete(" "), "empty"),
        (Answer(b"{}", latency_seconds=0.6), "timeout"),
    ],
)
def test_fault_that_stays_has_its_name(spoilt, kind):
    _, error = ask(StubEndpoint(lambda request: spoilt), make_request(), timeout_seconds=0.2)
    assert (error.kind, error.retryable) == (kind, True)
    assert "(3 attempts)" in str(error)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refuse("too long"), "rejected"),
        (refuse("who are you", 403), "access"),
        (refuse("pay", 429, code="insufficient_quota"), "access"),
        (complete("cut in the midd", finish_reason="length"), "truncated"),
        (complete("", finish_reason="content_filter"), "refused"),
    ],
)
def test_fault_that_cannot_pass_is_asked_once(answer, kind):
    endpoint = StubEndpoint(lambda request: answer)
    _, error = ask(endpoint, make_request())
    assert (error.kind, error.retryable) == (kind, False)
    assert endpoint.num_requests == 1


def test_answer_that_is_no_http_is_a_broken_connection():
    async def run():
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with EndpointTeacher(url, "stub", retry=AT_ONCE) as teacher:
            with pytest.raises(TeacherError) as caught:
                await teacher.ask(make_request())
        server.close()
        return caught.value

    assert asyncio.run(run()).kind == "connection"


def test_retry_after_is_waited_for():
    busy = Answer(b"", 429, {"retry-after": "0.3"})
    endpoint = StubEndpoint(answer_in_turn(busy, complete("a")))

    async def run():
        async with endpoint, EndpointTeacher(endpoint.url, "stub", retry=AT_ONCE) as teacher:
            started = asyncio.get_running_loop().time()
            await teacher.ask(make_request())
            return asyncio.get_running_loop().time() - started

    assert asyncio.run(run()) >= 0.3


def test_served_model_is_the_name_that_replies_must_carry():
    endpoint = StubEndpoint(lambda request: complete("a", model="stub@main"))
    _, error = ask(endpoint, make_request())
    assert "set served_model" in str(error)
    teacher, reply = ask(endpoint, make_request(), served_model="stub@main")
    assert (teacher.name, reply.model) == ("stub", "stub@main")


def test_schema_is_asked_for_where_the_server_offers_it():
    endpoint = StubEndpoint()
    ask(endpoint, make_request(schema=SCHEMA), make_request())
    sent = endpoint.requests[0]["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == SCHEMA
    assert "response_format" not in endpoint.requests[1]


@pytest.mark.parametrize("status", [400, 422, 501])
def test_schema_is_given_up_once_and_said_so(status, caplog):
    def answer(request):
        if "response_format" in request:
            return refuse("Unexpected fields in the request: {'response_format'}", status)
        return echo(request)

    endpoint = StubEndpoint(answer)
    with caplog.at_level(logging.WARNING, logger="tracelib"):
        _, *replies = ask(endpoint, *(make_request(n, schema=SCHEMA) for n in range(3)))
    assert [reply.text for reply in replies] == [
        f"question {n} / seed {1000 + n}" for n in range(3)
    ]
    assert ["response_format" in request for request in endpoint.requests] == [
        True,
        False,
        False,
        False,
    ]
    assert len(caplog.messages) == 1
    assert "takes no reply schema" in caplog.messages[0]


def test_other_failures_are_no_reason_to_give_the_schema_up():
    crash = refuse("the json_schema worker crashed", 500)
    endpoint = StubEndpoint(answer_in_turn(refuse("prompt too long"), crash, complete("a")))
    _, error, reply = ask(endpoint, make_request(schema=SCHEMA), make_request(schema=SCHEMA))
    assert error.kind == "rejected"
    assert reply.text == "a"
    assert all("response_format" in request for request in endpoint.requests)


def test_teacher_is_asked_inside_only_and_opens_again():
    endpoint = StubEndpoint()
    teacher = EndpointTeacher("http://127.0.0.1:9/v1", "stub")
    with pytest.raises(RuntimeError, match="outside"):
        asyncio.run(teacher.ask(make_request()))

    async def run():
        async with endpoint:
            teacher = EndpointTeacher(endpoint.url, "stub")
            for _ in range(2):
                async with teacher:
                    assert (await teacher.ask(make_request())).text
            async with teacher:
                with pytest.raises(RuntimeError, match="already"):
                    await teacher.__aenter__()

    asyncio.run(run())


def run_many(url, num_requests, concurrency=16, **options):
    results = {}

    async def run():
        teacher = EndpointTeacher(url, "stub", **options)
        async with teacher:
            await run_requests(
                (make_request(number) for number in range(num_requests)),
                teacher,
                lambda request, outcome: results.update({request.key: outcome}),
                concurrency,
            )

    return run(), results


def test_spoilt_run_ends_in_the_rows_of_a_whole_one():
    async def run(is_spoilt):
        async with (
            StubEndpoint() as endpoint,
            FaultProxy(endpoint.port, seed=3, silence_seconds=1.0) as proxy,
        ):
            many, results = run_many(
                proxy.url if is_spoilt else endpoint.url,
                100,
                timeout_seconds=0.1,
                retry=RetryPolicy(max_attempts=60, base_seconds=0.0),
            )
            await many
        return proxy.counts, {key: outcome.text for key, outcome in results.items()}

    counts, spoilt = asyncio.run(run(True))
    no_counts, whole = asyncio.run(run(False))
    assert spoilt == whole
    assert len(whole) == 100
    assert all(counts[fault] > 5 for fault in FAULTS)
    assert not no_counts


def test_every_fault_alone_is_a_failure_and_never_a_reply():
    async def run(fault):
        async with (
            StubEndpoint() as endpoint,
            FaultProxy(endpoint.port, rate=1.0, faults=(fault,), silence_seconds=1.0) as proxy,
        ):
            many, results = run_many(
                proxy.url, 3, timeout_seconds=0.1, retry=RetryPolicy(max_attempts=1)
            )
            await many
        return {outcome.kind for outcome in results.values()}

    kinds = ("rate_limit", "server", "timeout", "connection", "invalid_reply", "wrong_model")
    assert [asyncio.run(run(fault)) for fault in FAULTS] == [{kind} for kind in kinds]


def test_a_dead_endpoint_is_a_connection_that_fails():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        many, results = run_many(url, 20, retry=AT_ONCE)
        asyncio.run(many)
    assert len(results) == 20
    assert {outcome.kind for outcome in results.values()} == {"connection"}
    assert all(str(outcome).startswith(f"{url}: ") for outcome in results.values())


@pytest.mark.parametrize(
    ("limits", "latency_seconds", "most_in_flight", "least_seconds"),
    [
        (RateLimits(concurrency=3), 0.01, 3, 75 / 3 * 0.01),
        (RateLimits(requests_per_minute=60 * 50), 0.0, 16, (75 - 50) / 50),
        # An answer has 15 tokens: 75 of them are 1125, of which 600 at once.
        (RateLimits(tokens_per_minute=60 * 600), 0.0, 16, (75 * 15 - 600) / 600),
    ],
)
def test_limits_hold_before_a_server(limits, latency_seconds, most_in_flight, least_seconds):
    async def run():
        async with StubEndpoint(latency_seconds=latency_seconds) as endpoint:
            many, results = run_many(endpoint.url, 75, limits=limits)
            started = asyncio.get_running_loop().time()
            await many
            seconds = asyncio.get_running_loop().time() - started
        assert all(isinstance(outcome, Reply) for outcome in results.values())
        return endpoint.most_in_flight, seconds

    most, seconds = asyncio.run(run())
    assert most <= most_in_flight
    assert seconds >= 0.95 * least_seconds


def test_tokens_that_an_answer_did_not_use_are_given_back():
    async def run():
        async with StubEndpoint() as endpoint:
            limits = RateLimits(tokens_per_minute=60 * 100)
            async with EndpointTeacher(endpoint.url, "stub", limits=limits) as teacher:
                for number in range(3):  # each reserves a quarter of an hour
                    await teacher.ask(make_request(number, max_tokens=90_000))

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("package", ["openai", "aiohttp"])
def test_missing_package_is_named(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from tracelib.construction.teachers.endpoint import EndpointTeacher\n"
        "EndpointTeacher('http://127.0.0.1:9/v1', 'stub')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        f"ImportError: an endpoint teacher needs the package {package}: pip install" in done.stderr
    )


@pytest.mark.parametrize("bad", [{"timeout_seconds": 0}, {"max_picture_bytes": 0}])
def test_impossible_number_is_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is 0"):
        EndpointTeacher("http://127.0.0.1:9/v1", "stub", **bad)
