"""Parts of an archive become pictures: joined, safe, and again after a stop."""

import io
import json
import os
import tarfile

import pytest

from tracelib.data.download.archive import read_note, unpack_pictures
from tracelib.data.download.hub import DownloadError

pytestmark = pytest.mark.filterwarnings("error")  # of a file left open

PICTURES = {f"mbeir_images/set{i % 3}/{i}.jpg": os.urandom(150_000 + i) for i in range(40)}


def pack(folder, members, num_parts=3):
    """Write a tar.gz in parts of unequal size; a member is bytes or a function of its TarInfo."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                content(member)
                archive.addfile(member)
    packed = packed.getvalue()
    cuts = [0, *(len(packed) * (2 * n + 1) // (2 * num_parts) for n in range(1, num_parts)), None]
    parts = [folder / f"mbeir_images.tar.gz.part-{n:02d}" for n in range(num_parts)]
    for part, begin, end in zip(parts, cuts, cuts[1:], strict=False):
        part.write_bytes(packed[begin:end])
    return parts


def read_pictures(root):
    files = (path for path in root.rglob("*.jpg") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_pictures_come_out_byte_for_byte(tmp_path):
    parts = pack(tmp_path, PICTURES)
    seen = []
    unpack_pictures(parts, ["a", "b", "c"], tmp_path, seen.append)
    assert read_pictures(tmp_path) == PICTURES
    assert sum(seen) == sum(part.stat().st_size for part in parts)
    note = read_note(tmp_path, ["a", "b", "c"])
    assert note.is_complete
    assert note.num_bytes == sum(map(len, PICTURES.values()))


def test_a_stopped_unpacking_goes_on(tmp_path):
    parts = pack(tmp_path, PICTURES)

    num_seen = 0

    def stop_in_second_part(num_bytes):
        nonlocal num_seen
        num_seen += num_bytes
        if num_seen > parts[0].stat().st_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_pictures(parts, ["a"], tmp_path, stop_in_second_part)
    there = sorted(tmp_path.rglob("*.jpg"))
    assert 0 < len(there) < len(PICTURES)
    assert not read_note(tmp_path, ["a"]).is_complete
    there[0].write_bytes(b"cut short")
    os.utime(there[1], ns=(1, 1))
    unpack_pictures(parts, ["a"], tmp_path, print)
    assert read_pictures(tmp_path) == PICTURES
    assert there[1].stat().st_mtime_ns == 1
    assert read_note(tmp_path, ["a"]).is_complete


def test_pictures_of_another_version_are_not_mixed(tmp_path):
    unpack_pictures(pack(tmp_path, PICTURES), ["a"], tmp_path, print)
    with pytest.raises(DownloadError, match=r"mbeir_images holds pictures of another version"):
        unpack_pictures(pack(tmp_path, PICTURES), ["b"], tmp_path, print)


def make_link(kind, target):
    def change(member):
        member.type, member.linkname = kind, target

    return change


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mbeir_images/../../evil.jpg", b"evil"),
        ("mbeir_images/../query/evil.jpg", b"evil"),
        ("/evil.jpg", b"evil"),
        ("query/test/evil.jpg", b"evil"),
        ("mbeir_images", b"evil"),
        ("mbeir_images/.unpacked.json", b"evil"),
        ("mbeir_images/._evil.jpg", make_link(tarfile.SYMTYPE, "/etc/passwd")),
        ("..", make_link(tarfile.DIRTYPE, "")),
        ("mbeir_images/evil.jpg", make_link(tarfile.SYMTYPE, "/etc/passwd")),
        ("mbeir_images/evil.jpg", make_link(tarfile.SYMTYPE, "set0/0.jpg")),
        ("mbeir_images/evil.jpg", make_link(tarfile.LNKTYPE, "mbeir_images/set0/0.jpg")),
        ("mbeir_images/evil.jpg", make_link(tarfile.FIFOTYPE, "")),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, name, content):
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    parts = pack(tmp_path, {"mbeir_images/first.jpg": b"first", name: content})
    with pytest.raises(DownloadError, match="the archive holds") as error:
        unpack_pictures(parts, ["a"], root, print)
    assert repr(name) in str(error.value)
    assert read_pictures(tmp_path) == {"deep/root/mbeir_images/first.jpg": b"first"}
    assert not read_note(root, ["a"]).is_complete


def test_the_root_folder_and_the_files_of_macos_are_passed_over(tmp_path):
    folder = make_link(tarfile.DIRTYPE, "")
    extra = {"./": folder, "./._mbeir_images": b"mac", "./mbeir_images": folder}
    extra |= {"mbeir_images/set0/._0.jpg": b"mac", "._.": b"mac"}
    unpack_pictures(pack(tmp_path, extra | PICTURES), ["a"], tmp_path / "root", print)
    assert read_pictures(tmp_path / "root") == PICTURES
    assert read_note(tmp_path / "root", ["a"]).num_bytes == sum(map(len, PICTURES.values()))


@pytest.mark.parametrize("text", ['{"checksums": ["a"], "num_b', "", "[]", '{"other": 1}'])
def test_a_note_cut_short_counts_as_absent(tmp_path, text):
    parts = pack(tmp_path, PICTURES)
    unpack_pictures(parts, ["a"], tmp_path, print)
    (tmp_path / "mbeir_images/.unpacked.json").write_text(text)
    assert not read_note(tmp_path, ["a"]).is_complete
    unpack_pictures(parts, ["a"], tmp_path, print)
    assert read_note(tmp_path, ["a"]).is_complete


def test_a_link_on_disk_leads_nowhere(tmp_path):
    root = tmp_path / "root"
    (root / "mbeir_images").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (root / "mbeir_images" / "set0").symlink_to(tmp_path / "elsewhere")
    parts = pack(tmp_path, {"mbeir_images/set0/0.jpg": b"0"})
    with pytest.raises(DownloadError, match=r"set0/0\.jpg"):
        unpack_pictures(parts, ["a"], root, print)
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("keep", [slice(0, 2), slice(1, 3)])
def test_a_missing_part_is_an_error(tmp_path, keep):
    parts = pack(tmp_path, PICTURES)[keep]
    with pytest.raises(DownloadError, match=r"part-01.*no whole tar\.gz"):
        unpack_pictures(parts, ["a"], tmp_path, print)
    assert not json.loads((tmp_path / "mbeir_images/.unpacked.json").read_text())["is_complete"]
