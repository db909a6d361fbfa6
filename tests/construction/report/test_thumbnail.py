import base64
import io

import pytest
from PIL import Image

from tracelib.construction.report.thumbnail import make_thumbnail


def decode(thumbnail):
    kind, _, code = thumbnail.url.partition(",")
    return kind, Image.open(io.BytesIO(base64.b64decode(code)))


def test_a_large_picture_shrinks_and_keeps_its_shape(tmp_path):
    Image.effect_noise((1600, 400), 60).convert("RGB").save(tmp_path / "a.png")
    thumbnail = make_thumbnail(tmp_path, "a.png")
    kind, picture = decode(thumbnail)
    assert kind == "data:image/jpeg;base64"
    assert picture.size == (thumbnail.width, thumbnail.height) == (256, 64)
    assert not thumbnail.is_tiny
    assert make_thumbnail(tmp_path, "a.png") == thumbnail


def test_a_drawing_of_a_few_pixels_stays_exact(tmp_path):
    original = Image.effect_noise((60, 49), 60).convert("RGB")
    original.save(tmp_path / "a.png")
    thumbnail = make_thumbnail(tmp_path, "a.png")
    kind, picture = decode(thumbnail)
    assert kind == "data:image/png;base64"
    assert thumbnail.is_tiny
    assert picture.tobytes() == original.tobytes()


def test_transparency_and_colour_profiles_are_no_obstacle(tmp_path):
    Image.new("RGBA", (500, 500), (255, 0, 0, 10)).save(tmp_path / "a.png")
    Image.new("CMYK", (500, 500)).save(tmp_path / "b.jpg")
    Image.new("P", (20, 20)).save(tmp_path / "c.gif")
    assert all(make_thumbnail(tmp_path, name) for name in ("a.png", "b.jpg", "c.gif"))


@pytest.mark.parametrize("path", ["missing.png", "broken.png", "../outside.png"])
def test_a_picture_that_cannot_be_read_is_none(tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.png")
    assert make_thumbnail(root, path) is None
