import re
import struct
import zlib

import pytest
from PIL import Image

from tracelib.data import images
from tracelib.data.images import ImageError, load_image, open_image


def write_png_header(path, width, height):
    """Write a PNG whose header claims a size, followed by almost no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_loads_every_mode_as_rgb(tmp_path, mode):
    Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(tmp_path / "white.png")
    image = load_image(tmp_path, "white.png")
    assert (image.mode, image.size, image.getpixel((3, 2))) == ("RGB", (7, 5), (255, 255, 255))


def test_result_outlives_its_file(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png")
    image = load_image(tmp_path, "a.png")
    (tmp_path / "a.png").unlink()
    assert image.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    "name", ["../secret.png", "inside/../../secret.png", "link.png", "up/secret.png"]
)
def test_a_path_out_of_the_root_is_refused(tmp_path, name):
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    with pytest.raises(ImageError, match=re.escape(f"{root / name}: leads to")):
        load_image(root, name)


def test_an_absolute_path_is_refused_outside_and_taken_inside(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for folder in (tmp_path, root):
        Image.new("RGB", (4, 4)).save(folder / "a.png")
    assert load_image(root, str(root / "a.png")).size == (4, 4)
    with pytest.raises(ImageError, match="outside the data root"):
        load_image(root, str(tmp_path / "a.png"))


def test_a_root_that_is_itself_a_link_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "real" / "a.png")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert load_image(tmp_path / "root", "a.png").size == (4, 4)


@pytest.mark.parametrize("side", [8200, 9300, 15000])  # ours, Pillow's warning, Pillow's error
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(tmp_path, side):
    write_png_header(tmp_path / "bomb.png", side, side)
    with pytest.raises(ImageError, match=re.escape(f"{tmp_path / 'bomb.png'}: ") + ".*shrink"):
        load_image(tmp_path, "bomb.png")


def test_the_pixel_limit_itself_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 20)
    Image.new("RGB", (5, 4)).save(tmp_path / "just.png")
    Image.new("RGB", (7, 3)).save(tmp_path / "over.png")
    assert load_image(tmp_path, "just.png").size == (5, 4)
    with pytest.raises(ImageError, match="7 x 3 pixels are more than 20"):
        load_image(tmp_path, "over.png")


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (403, 2)])
def test_an_extreme_aspect_ratio_is_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "long.png")
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels are an aspect ratio"):
        load_image(tmp_path, "long.png")


def test_the_aspect_ratio_200_is_allowed(tmp_path):
    Image.new("RGB", (400, 2)).save(tmp_path / "long.png")
    assert load_image(tmp_path, "long.png").size == (400, 2)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=re.escape(f"{path}: no whole picture")):
        load_image(tmp_path, path.name)


def test_other_broken_files_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "folder.png").mkdir()
    write_png_header(tmp_path / "hollow.png", 8, 8)
    Image.new("RGB", (4, 4)).save(tmp_path / "foreign.tiff")
    for name in ("text.png", "folder.png", "hollow.png", "foreign.tiff"):
        with pytest.raises(ImageError, match=re.escape(f"{tmp_path / name}: no whole picture")):
            load_image(tmp_path, name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ImageError, match=re.escape(f"{tmp_path / 'gone.png'}: the file is missing")
    ):
        load_image(tmp_path, "gone.png")


def test_an_opened_picture_was_checked_and_is_not_decoded(tmp_path):
    write_png_header(tmp_path / "header.png", 40, 30)
    with open_image(tmp_path, "header.png") as image:
        assert image.size == (40, 30)
    with pytest.raises(ImageError, match="no whole picture"):
        load_image(tmp_path, "header.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="no whole picture"), open_image(tmp_path, "a.tiff"):
        pass
