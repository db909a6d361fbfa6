"""The in-process teacher: the embedded backbone on Scenes, where right replies are known."""

import asyncio
import dataclasses
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.construction.teachers.scenes_requests import make_request, read_hard_queries
from tracelib.construction.teachers.in_process import EngineTeacher
from tracelib.construction.teachers.teacher import Reply, TeacherError


@pytest.fixture(scope="module")
def hard(tiny_scenes):
    return read_hard_queries(tiny_scenes)


def ask(root, requests, **options):
    """Ask all at once; a failure is a result."""

    async def run():
        async with EngineTeacher("embedded", root, device="cpu", **options) as teacher:
            asked = [teacher.ask(request) for request in requests]
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(run())


def describe(result):
    return result.text if isinstance(result, Reply) else str(result)


def test_cards_in_words_and_in_pictures_are_worked_out(tiny_scenes, hard):
    replies = ask(tiny_scenes, [make_request(query) for query, _ in hard])
    has_picture = [query["query_img_path"] is not None for query, _ in hard]
    assert any(has_picture)
    assert not all(has_picture)
    right = [reply.text == text for reply, (_, text) in zip(replies, hard, strict=True)]
    assert sum(right) >= 0.95 * len(right)
    assert {(reply.model, reply.finish_reason) for reply in replies} == {("embedded", "stop")}
    assert all(reply.prompt_tokens > 20 and reply.latency_seconds > 0 for reply in replies)


def test_drawn_reply_depends_on_its_request_alone(tiny_scenes, hard):
    drawn = [make_request(query, temperature=1.8, seed=n) for n, (query, _) in enumerate(hard[:9])]
    others = [make_request(query, temperature=0.7) for query, _ in hard[9:30]]
    alone = ask(tiny_scenes, drawn, batch_size=1)
    together = ask(tiny_scenes, [*others, *reversed(drawn)], batch_size=64)[len(others) :]
    texts = list(map(describe, alone))
    assert list(map(describe, reversed(together))) == texts
    other_seeds = [dataclasses.replace(request, seed=request.seed + 100) for request in drawn]
    assert list(map(describe, ask(tiny_scenes, other_seeds))) != texts


def test_equal_seeds_of_different_chats_draw_apart(tiny_scenes, hard):
    query, _ = hard[0]
    request = make_request(query, temperature=1.8)
    chat = [{"role": "system", "content": ""}, *request.messages[1:]]
    first, second, third = ask(
        tiny_scenes,
        [request, dataclasses.replace(request, messages=chat), request],
    )
    assert first.text == third.text != second.text


def test_limit_counts_the_end_token_and_cuts_no_other_reply(tiny_scenes, hard):
    request = make_request(hard[0][0])
    (whole,) = ask(tiny_scenes, [request])
    exact, short, shortest = (
        dataclasses.replace(request, max_tokens=number)
        for number in (whole.completion_tokens, whole.completion_tokens - 1, 1)
    )
    results = ask(tiny_scenes, [exact, short, request, shortest])
    assert [results[0].text, results[2].text] == [whole.text] * 2
    assert [(r.kind, r.retryable) for r in (results[1], results[3])] == [("truncated", False)] * 2


def test_bad_picture_fails_its_request_only(tiny_scenes, hard, tmp_path):
    texts = [make_request(query) for query, _ in hard if not query["query_img_path"]]
    seen = next(query for query, _ in hard if query["query_img_path"])
    bad = [
        make_request({**seen, "query_img_path": path})
        for path in ("../a.png", "mbeir_images/a.png")
    ]
    good, outside, missing = ask(tiny_scenes, [texts[0], *bad])
    assert isinstance(good, Reply)
    assert [(error.kind, error.retryable) for error in (outside, missing)] == [
        ("picture", False)
    ] * 2
    assert "outside the data root" in str(outside)
    (rootless,) = ask(None, [make_request(seen)])
    assert "picture_root" in str(rootless)


def test_prompt_that_does_not_fit_is_rejected(tiny_scenes, hard):
    query = {**hard[0][0], "query_txt": "a red star " * 400}
    (error,) = ask(tiny_scenes, [make_request(query)])
    assert (error.kind, error.retryable) == ("rejected", False)
    assert "the 1024 of 'embedded'" in str(error)


def test_model_that_says_nothing_has_no_reply(tiny_backbone, tmp_path, hard):
    folder = tmp_path / "silent"
    shutil.copytree(tiny_backbone, folder)
    weights = load_file(folder / "model.safetensors")
    norm = next(name for name in weights if name.endswith("model.norm.weight"))
    weights[norm] = weights[norm] * 0  # all tokens are equally likely, and the first one is taken
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    text = next(query for query, _ in hard if not query["query_img_path"])

    async def run():
        teacher = EngineTeacher(str(folder), end_token="<|endoftext|>", device="cpu")
        async with teacher:
            await teacher.ask(make_request(text))

    with pytest.raises(TeacherError, match="empty after 1 tokens") as caught:
        asyncio.run(run())
    assert caught.value.kind == "empty"


def test_teacher_is_entered_once_at_a_time_and_asked_inside(hard):
    async def run():
        teacher = EngineTeacher(device="cpu")
        request = make_request(next(q for q, _ in hard if not q["query_img_path"]))
        with pytest.raises(RuntimeError, match="outside"):
            await teacher.ask(request)
        texts = []
        for _ in range(2):
            async with teacher:
                with pytest.raises(RuntimeError, match="entered already"):
                    await teacher.__aenter__()
                texts.append((await teacher.ask(request)).text)
        assert texts[0] == texts[1]

    asyncio.run(run())


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="batch_size is 0; allowed 1 and above"):
        EngineTeacher(batch_size=0)

    async def enter():
        async with EngineTeacher(end_token="</s>"):
            pass

    with pytest.raises(ValueError, match="end_token is '</s>'; allowed are tokens of 'embedded'"):
        asyncio.run(enter())
