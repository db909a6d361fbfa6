"""The teacher that is asked by file, with replies in the forms of `vllm run-batch` and vendors."""

import asyncio
import base64
import gc
import json

import pytest
from PIL import Image

from tests.construction.teachers.stub_endpoint import complete
from tracelib.construction.teachers.batch_files import BatchReplies, BatchRequests, name_request
from tracelib.construction.teachers.offline import OfflineTeacher
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError


@pytest.fixture
def files(tmp_path):
    return tmp_path / "batch" / "requests.jsonl", tmp_path / "batch" / "replies.jsonl"


def make_request(number=0, **changes):
    fields = {
        "key": f"generate/9:{number}/0",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "max_tokens": 32,
        "temperature": 0.5,
        "seed": 1000 + number,
    }
    return Request(**{**fields, **changes})


def ask(files, *requests, error=None, **options):
    """Ask one after another and leave, by an error if one is given; failures are results."""

    async def run():
        results = []
        async with OfflineTeacher(*files, "stub", **options) as teacher:
            for request in requests:
                try:
                    results.append(await teacher.ask(request))
                except TeacherError as failure:
                    results.append(failure)
            if error:
                raise error
        return results

    return asyncio.run(run())


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer(files, *lines):
    """Write the replies of a batch: given lines, or a reply to every request."""
    requests, replies = files
    lines = lines or [
        succeed(line["custom_id"], f"reply to {line['body']['messages'][-1]['content']}")
        for line in read(requests)
    ]
    replies.write_text("".join(json.dumps(line) + "\n" for line in lines))


def succeed(custom_id, text, **choice):
    body = json.loads(complete(text, **choice).body)
    response = {"status_code": 200, "request_id": "vllm-batch-1", "body": body}
    return {"id": "vllm-1", "custom_id": custom_id, "response": response, "error": None}


def fail(custom_id, status, said):
    return {
        "id": "vllm-2",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": "vllm-batch-2"},
        "error": {"message": said},
    }


def test_requests_are_written_first_and_answered_the_next_time(files):
    asked = [make_request(number) for number in range(3)]
    waiting = ask(files, *asked)
    assert [(failure.kind, failure.retryable) for failure in waiting] == [("waiting", True)] * 3
    assert str(files[0]) in str(waiting[0])
    assert str(files[1]) in str(waiting[0])
    lines = read(files[0])
    assert lines[1] == {
        "custom_id": lines[1]["custom_id"],
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "stub",
            "messages": [{"role": "user", "content": "question 1"}],
            "max_tokens": 32,
            "temperature": 0.5,
            "seed": 1001,
        },
    }
    assert lines[1]["custom_id"].startswith("generate-9-1-0-")
    answer(files)
    replies = ask(files, *reversed(asked))
    assert [reply.text for reply in replies] == [f"reply to question {n}" for n in (2, 1, 0)]
    assert replies[0] == Reply("reply to question 2", "stub", 10, 5, 0.0, "stop")
    assert read(files[0]) == lines  # nothing waited, and the file stays


def test_reply_to_another_question_is_never_taken(files):
    ask(files, make_request())
    answer(files)
    changes = (
        {"messages": [{"role": "user", "content": "question 0?"}]},
        {"max_tokens": 33},
        {"temperature": 0.0},
        {"seed": 1},
        {"schema": {"type": "object"}},
    )
    results = ask(files, make_request(), *(make_request(**change) for change in changes))
    assert isinstance(results[0], Reply)
    assert [failure.kind for failure in results[1:]] == ["waiting"] * len(changes)
    written = read(files[0])
    assert len(written) == len(changes)
    assert written[-1]["body"]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_what_may_succeed_later_waits_again_and_what_may_not_fails(files):
    asked = [make_request(number) for number in range(6)]
    ask(files, *asked)
    names = [line["custom_id"] for line in read(files[0])]
    answer(
        files,
        fail(names[0], 500, "out of memory"),
        fail(names[1], 400, "the prompt is too long"),
        {"custom_id": names[2], "response": None, "error": {"code": "batch_expired"}},
        succeed(names[3], "cut", finish_reason="length"),
        succeed(names[4], "whole", model="other"),
        fail(names[5], 429, "later"),
        succeed(names[5], "the last line counts"),
    )
    results = ask(files, *asked)
    kinds = [result.kind for result in results[:5]]
    assert kinds == ["waiting", "rejected", "waiting", "truncated", "wrong_model"]
    assert "the prompt is too long" in str(results[1])
    assert results[5].text == "the last line counts"
    assert [line["custom_id"] for line in read(files[0])] == [names[0], names[2]]


def test_request_that_is_asked_again_is_written_once(files):
    ask(files, make_request(), make_request(), make_request(1))
    assert len(read(files[0])) == 2


def test_run_that_breaks_off_leaves_the_older_file(files):
    ask(files, make_request())
    before = files[0].read_bytes()
    with pytest.raises(KeyboardInterrupt):
        ask(files, make_request(1), error=KeyboardInterrupt())
    assert files[0].read_bytes() == before
    assert list(files[0].parent.iterdir()) == [files[0]]


def test_pictures_travel_within_their_requests(files, tmp_path):
    Image.new("RGB", (9, 5), "green").save(tmp_path / "a.png")
    parts = [{"type": "image_path", "path": "a.png"}, {"type": "text", "text": "What?"}]
    request = make_request(messages=[{"role": "user", "content": parts}])
    (waiting,) = ask(files, request, picture_root=tmp_path)
    assert waiting.kind == "waiting"
    sent = read(files[0])[0]["body"]["messages"][0]["content"]
    head, content = sent[0]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content) == (tmp_path / "a.png").read_bytes()
    (missing,) = ask(files, request, picture_root=tmp_path / "batch")
    (rootless,) = ask(files, request)
    assert [missing.kind, rootless.kind] == ["picture", "picture"]


def test_names_are_safe_and_short():
    name = name_request("verify/10:77/3 <>" + "x" * 80, {"seed": 1})
    assert len(name) <= 64
    assert name.replace("-", "").isalnum()


@pytest.mark.filterwarnings("error")  # of a file left open
@pytest.mark.parametrize("line", ["{", "[]", '{"id": "1"}', '{"custom_id": 3}'])
def test_broken_line_is_named(files, line):
    ask(files, make_request())
    answer(files)
    with files[1].open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"replies\.jsonl, line 3: no line of a batch's replies"):
        ask(files, make_request())
    gc.collect()


def test_settings_that_cannot_work_are_refused(files):
    with pytest.raises(ValueError, match="both"):
        OfflineTeacher(files[0], files[0], "stub")
    with pytest.raises(ValueError, match="max_picture_bytes is 0; allowed 1 and above"):
        OfflineTeacher(*files, "stub", max_picture_bytes=0)

    async def outside():
        await OfflineTeacher(*files, "stub").ask(make_request())

    with pytest.raises(RuntimeError, match="outside"):
        asyncio.run(outside())


def test_files_of_a_batch_are_closed(files):
    requests = BatchRequests(files[0])
    requests.close(is_whole=True)
    assert not files[0].exists()
    replies = BatchReplies(files[1])
    assert replies.find("any") is None
    replies.close()
