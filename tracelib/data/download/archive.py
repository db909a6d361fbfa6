"""Unpacks the pictures of M-BEIR from the parts of their archive, without joining them on disk."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from tracelib.data.download.hub import Advance, DownloadError
from tracelib.retrieval.whole_files import write_whole

PICTURES = "mbeir_images"
"""The folder in the archive, and below the data root."""
_BLOCK_BYTES = 1 << 20
_NOTE_EVERY_BYTES = 1 << 30


@dataclass(frozen=True)
class UnpackNote:
    """How far unpacking came; it lies in the folder of the pictures and goes when that goes.

    Args:
        checksums: Of the archive's parts, in order.
        num_bytes: Bytes of the pictures that are there.
        is_complete: Whether they are all there.
    """

    checksums: list[str]
    num_bytes: int = 0
    is_complete: bool = False


def read_note(root: Path, checksums: Sequence[str]) -> UnpackNote:
    """Return how far these parts were unpacked; a note that cannot be read counts as none.

    Raises:
        DownloadError: The folder holds pictures of other parts.
    """
    path = _locate_note(root)
    if not path.exists():
        return UnpackNote(list(checksums))
    try:
        note = UnpackNote(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # cut short: unpacking finds out what is there
        return UnpackNote(list(checksums))
    if note.checksums != list(checksums):
        raise DownloadError(
            f"{path.parent} holds pictures of another version of the archive; move it away, or "
            "keep it (--images false)"
        )
    return note


def unpack_pictures(
    parts: Sequence[Path], checksums: Sequence[str], root: Path, advance: Advance
) -> None:
    """Unpack the pictures of a tar.gz that was cut in parts.

    Pictures that are there with the right size, from a call that was stopped, are kept.

    Args:
        parts: The parts, in order.
        checksums: Of the parts, checked already; they name this version of the archive.
        root: Data root; nothing is written outside its folder `mbeir_images`.
        advance: Called with the bytes of the parts read since the last call.

    Raises:
        DownloadError: The archive is broken, or holds something else than pictures.
    """
    before = note = read_note(root, checksums)
    _write_note(root, note)
    num_bytes = 0
    try:
        with (
            io.BufferedReader(_JoinedParts(parts, advance), _BLOCK_BYTES) as joined,
            gzip.GzipFile(fileobj=joined) as unzipped,
            tarfile.open(fileobj=unzipped, mode="r|", bufsize=_BLOCK_BYTES) as archive,
        ):
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # else it remembers millions
                num_bytes += _unpack_member(archive, member, root)
                if num_bytes >= note.num_bytes + _NOTE_EVERY_BYTES:
                    note = replace(note, num_bytes=num_bytes)
                    _write_note(root, note)
    except (tarfile.ReadError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        names = ", ".join(str(part) for part in parts)
        raise DownloadError(f"{names}: joined, they are no whole tar.gz: {error}") from error
    _write_note(root, replace(before, num_bytes=num_bytes, is_complete=True))


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> int:
    """Write a picture that is not there; return its bytes.

    The root folder itself and the `._` files that macOS adds are passed over.

    Raises:
        DownloadError: It is a link, a device, the note, or not inside the folder of the pictures.
    """
    path = PurePosixPath(member.name)
    if (member.isdir() and not path.parts) or (member.isreg() and path.name.startswith("._")):
        return 0
    is_inside = path.parts[:1] == (PICTURES,) and ".." not in path.parts
    is_picture = member.isreg() and len(path.parts) > 1
    is_note = root / path == _locate_note(root)
    refusal = DownloadError(
        f"the archive holds {member.name!r}, which is no file or folder inside {PICTURES}; nothing "
        "of it was written, and what came before it stays"
    )
    if not is_inside or is_note or not (is_picture or member.isdir()):
        raise refusal
    target = root / path
    if member.isdir() or (target.is_file() and target.stat().st_size == member.size):
        return member.size
    try:
        archive.extract(member, root, set_attrs=False, filter="data")
    except tarfile.FilterError:  # a link that was on disk leads outside
        raise refusal from None
    return member.size


def _locate_note(root: Path) -> Path:
    return root / PICTURES / ".unpacked.json"


def _write_note(root: Path, note: UnpackNote) -> None:
    write_whole(_locate_note(root), json.dumps(asdict(note)))


class _JoinedParts(io.RawIOBase):
    """The parts read one after the other as one stream."""

    def __init__(self, parts: Sequence[Path], advance: Advance) -> None:
        self._parts = list(parts)
        self._advance = advance
        self._opened: io.FileIO | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill from the current part, or from the next one where that ended."""
        while self._opened is not None or self._parts:
            if self._opened is None:
                self._opened = io.FileIO(self._parts.pop(0))
            if num_bytes := self._opened.readinto(buffer):
                self._advance(num_bytes)
                return num_bytes
            self._opened.close()
            self._opened = None
        return 0

    def close(self) -> None:
        """Close the part that is open."""
        if self._opened is not None:
            self._opened.close()
        super().close()
