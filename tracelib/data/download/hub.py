"""Files of a dataset repository on the Hugging Face hub: listed, fetched with resumption, checked.

`hf_hub_download` starts a file anew after its process was killed, which an archive of tens of
gigabytes does not forgive; so its inner `http_get` is called here, on a partial file that stays.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined] # public, but not declared so
    build_hf_headers,
    disable_progress_bars,
)

from tracelib.retrieval.whole_files import write_whole

Advance = Callable[[int], None]
"""Called with a number of bytes done since the last call; below 0 where some are done again."""
_BLOCK_BYTES = 1 << 20
_LISTING_SECONDS = 30.0
_MAX_FUTILE = 2
"""Broken streams in a row that gave not a byte, before giving up."""


class DownloadError(ValueError):
    """A file cannot be fetched, is not what the hub says it is, or has no room."""


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset repository.

    Args:
        repository: `owner/name`.
        commit: Commit that it is of.
        path: Path in the repository, and below the data root.
        size: Bytes.
        checksum: SHA-256 of a file in large-file storage, else git's SHA-1 of it.
        is_large: Whether it is in large-file storage.
    """

    repository: str
    commit: str
    path: str
    size: int
    checksum: str
    is_large: bool

    def partial(self, root: Path) -> Path:
        """Return where it grows; another version of the file grows elsewhere."""
        path = root / self.path
        return path.with_name(f"{path.name}.{self.checksum[:12]}.partial")


def list_files(repository: str, revision: str) -> dict[str, HubFile]:
    """Return the files of a revision by path.

    Raises:
        DownloadError: The hub does not answer, refuses, or knows no such repository or revision.
    """
    with _in_plain_words(repository, revision):
        found = HfApi().dataset_info(
            repository, revision=revision, files_metadata=True, timeout=_LISTING_SECONDS
        )
    files: dict[str, HubFile] = {}
    for sibling in found.siblings or []:
        checksum = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if found.sha is None or sibling.size is None or checksum is None:
            raise DownloadError(
                f"{constants.ENDPOINT} gives no size and checksum of {sibling.rfilename} in "
                f"{repository}; name a hub that does (HF_ENDPOINT)"
            )
        path = sibling.rfilename
        is_large = sibling.lfs is not None
        files[path] = HubFile(repository, found.sha, path, sibling.size, checksum, is_large)
    return files


def fetch_file(file: HubFile, root: Path, advance: Advance, advance_check: Advance) -> None:
    """Fetch a file, going on where an earlier call stopped; it gets its name when it is right.

    Args:
        file: The file.
        root: Data root.
        advance: Called with the bytes fetched.
        advance_check: Called with the bytes checked after that.

    Raises:
        DownloadError: The hub refuses, the stream breaks again without a byte gained, or the
            content is not what the hub announced.
    """
    _fetch_partial(file, root, advance)
    partial = file.partial(root)
    if wrong := find_difference(file, partial, advance_check):
        partial.unlink()
        raise DownloadError(f"{wrong}; it is removed, run again to fetch it anew")
    partial.replace(root / file.path)


def _fetch_partial(file: HubFile, root: Path, advance: Advance) -> None:
    partial = file.partial(root)
    partial.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(file.repository, file.path, repo_type="dataset", revision=file.commit)
    # a byte range of a compressed stream would not be one of the file
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    disable_progress_bars("huggingface_hub.http_get")
    num_futile = 0
    while (num_bytes := count_partial_bytes(file, root)) < file.size or not partial.exists():
        if num_bytes == 0:
            partial.unlink(missing_ok=True)  # it may be longer than the file
        try:
            with (
                _in_plain_words(file.repository, file.commit),
                _MeteredWriter(io.FileIO(partial, "ab"), advance) as writer,
            ):
                http_get(
                    url, writer, resume_size=num_bytes, headers=headers, expected_size=file.size
                )
        except DownloadError:
            num_futile = 0 if count_partial_bytes(file, root) > num_bytes else num_futile + 1
            if num_futile > _MAX_FUTILE:
                raise
            time.sleep(num_futile)


def count_partial_bytes(file: HubFile, root: Path) -> int:
    """Return how much of a file was fetched already, 0 where more is there than it has."""
    partial = file.partial(root)
    num_bytes = partial.stat().st_size if partial.exists() else 0
    return num_bytes if num_bytes <= file.size else 0


def find_difference(file: HubFile, path: Path, advance: Advance) -> str:
    """Return in what the content at `path` differs from a file of the hub, `""` in nothing."""
    digest = hashlib.sha256() if file.is_large else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
            advance(len(block))
    if digest.hexdigest() == file.checksum:
        return ""
    return (
        f"{path}: checksum {digest.hexdigest()} is not {file.checksum}, that of {file.path} in "
        f"{file.repository} at commit {file.commit}"
    )


class CheckedFiles:
    """Remembers which files had the right checksum, so that none is read again without need.

    Args:
        root: Data root; the memory is a JSON file in its folder `.tracelib`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / ".tracelib" / "download.json"
        self._stamps: dict[str, list[str | int]] = {}
        if self._path.exists():
            with suppress(ValueError):  # cut short: the files are checked again
                self._stamps.update(json.loads(self._path.read_text(encoding="utf-8")))

    def __contains__(self, file: HubFile) -> bool:
        return (self._root / file.path).exists() and (
            self._stamps.get(file.path) == self._stamp(file)
        )

    def add(self, file: HubFile) -> None:
        """Remember a file that is right, as long as nobody writes to it."""
        self._stamps[file.path] = self._stamp(file)
        write_whole(self._path, json.dumps(self._stamps, indent=1))

    def _stamp(self, file: HubFile) -> list[str | int]:
        stat = (self._root / file.path).stat()
        return [file.checksum, stat.st_size, stat.st_mtime_ns]


class _MeteredWriter(io.BufferedWriter):
    """A file opened to append that tells how it grows, or shrinks where it is fetched anew."""

    def __init__(self, raw: io.FileIO, advance: Advance) -> None:
        super().__init__(raw)
        self._advance = advance
        self._num_bytes = self.tell()

    def write(self, buffer: bytes, /) -> int:  # type: ignore[override] # http_get writes bytes
        """Write and tell."""
        num_bytes = super().write(buffer)
        self._tell()
        return num_bytes

    def truncate(self, size: int | None = None, /) -> int:
        """Cut and tell."""
        num_bytes = super().truncate(size)
        self._tell()
        return num_bytes

    def _tell(self) -> None:
        before, self._num_bytes = self._num_bytes, self.tell()
        self._advance(self._num_bytes - before)


@contextmanager
def _in_plain_words(repository: str, revision: str) -> Iterator[None]:
    """Turn the hub's errors into one line with the way out."""
    hub = constants.ENDPOINT
    page = f"{hub}/datasets/{repository}"
    try:
        yield
    except GatedRepoError:
        message = f"access is gated: accept its terms at {page} and set HF_TOKEN"
    except RepositoryNotFoundError:
        message = f"no such dataset at {hub}, or a private one: check the name, or set HF_TOKEN"
    except RevisionNotFoundError:
        message = f"no revision {revision!r}; {page}/tree/main lists them"
    except HFValidationError:
        message = "is no name of a repository; it is of the form owner/name"
    except HfHubHTTPError as error:
        code = error.response.status_code
        message = f"{hub} answered {code}; run again to go on, or check HF_TOKEN if it is 401, 403"
    except (httpx2.HTTPError, OSError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"{reason}; check network, HF_ENDPOINT and disk, and run again to go on"
    else:
        return
    raise DownloadError(f"{repository}: {message}") from None
