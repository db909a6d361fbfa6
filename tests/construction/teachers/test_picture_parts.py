"""Pictures in requests: the file as it is, and only from below the root."""

import asyncio
import base64

import pytest
from PIL import Image

from tracelib.construction.teachers.picture_parts import (
    estimate_prompt_tokens,
    has_pictures,
    load_chat,
    load_pictures,
)
from tracelib.construction.teachers.teacher import TeacherError


def ask_about(*paths):
    parts = [{"type": "image_path", "path": path} for path in paths]
    return [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]},
    ]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (8, 4), "red").save(folder / "a.png")
    Image.new("RGB", (8, 4), "blue").save(folder / "b.jpg")
    Image.new("RGB", (8, 4)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "text.png").write_text("no picture")
    return folder


def test_each_file_comes_as_its_bytes_and_type(root):
    messages = ask_about("a.png", "b.jpg")
    system, user = load_pictures(messages, root, 10_000)
    assert system == messages[0]
    assert user["role"] == "user"
    assert user["content"][2] == {"type": "text", "text": "What is it?"}
    for part, name, kind in zip(user["content"], ("a.png", "b.jpg"), ("png", "jpeg"), strict=False):
        head, content = part["image_url"]["url"].split(",")
        assert part["type"] == "image_url"
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(content) == (root / name).read_bytes()


@pytest.mark.parametrize(
    ("picture_format", "media_type"),
    [
        ("JPEG", "image/jpeg"),
        ("MPO", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
    ],
)
def test_type_is_that_of_the_content_whatever_the_name_says(tmp_path, picture_format, media_type):
    picture = Image.new("RGB", (8, 4))
    several = {"save_all": True, "append_images": [picture]} if picture_format == "MPO" else {}
    picture.save(tmp_path / "a.png", picture_format, **several)
    (message,) = load_pictures(ask_about("a.png")[1:], tmp_path, 10_000)
    assert message["content"][0]["image_url"]["url"].startswith(f"data:{media_type};base64,")


def test_chat_with_pictures_needs_their_root(root):
    messages = ask_about("a.png")
    assert asyncio.run(load_chat(messages, root, 10_000)) == load_pictures(messages, root, 10_000)
    assert asyncio.run(load_chat(ask_about(), None, 10_000)) == ask_about()
    with pytest.raises(TeacherError, match="set picture_root") as caught:
        asyncio.run(load_chat(messages, None, 10_000))
    assert (caught.value.kind, caught.value.retryable) == ("picture", False)


def test_messages_are_left_alone(root):
    messages = ask_about("a.png")
    load_pictures(messages, root, 10_000)
    assert messages == ask_about("a.png")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "outside the data root"),
        ("link.png", "outside the data root"),
        ("/etc/hostname", "outside the data root"),
        ("missing.png", "missing"),
        ("text.png", "no whole picture"),
    ],
)
def test_picture_that_may_not_be_sent_is_named(root, path, reason):
    with pytest.raises(TeacherError, match=reason) as caught:
        load_pictures(ask_about(path), root, 10_000)
    assert (caught.value.kind, caught.value.retryable) == ("picture", False)


def test_size_limit_is_the_largest_allowed_size(root):
    size = (root / "a.png").stat().st_size
    load_pictures(ask_about("a.png"), root, size)
    with pytest.raises(TeacherError, match=f"more than {size - 1} bytes"):
        load_pictures(ask_about("a.png"), root, size - 1)


def test_pictures_are_found_and_estimated():
    with_one, without = ask_about("a.png"), ask_about()
    assert has_pictures(with_one)
    assert not has_pictures(without)
    assert not has_pictures([{"role": "user", "content": "image_path"}])
    assert estimate_prompt_tokens(without) == len("Look.What is it?") // 4
    assert estimate_prompt_tokens(with_one) > estimate_prompt_tokens(without)
