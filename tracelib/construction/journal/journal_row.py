"""A row of the work folder, and the line that it is written as.

A line is one JSON object, ASCII, with the row's fields and, last, the CRC-32 of the object without
it:

    {"query_id":"9:3","phase":"assess","sample":0,"status":"done","input_hash":"5d1c0fa2b3e49687",
     "attempt":1,"result":{"difficulty":1},"error":null,"crc32":"9a0b31c7"}

A checksum and not a length in front of each line: a power loss may leave blocks of zeros in a file
that has its full length, which only a checksum sees, and the file stays JSON Lines for any tool.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tracelib.construction.journal.row_key import pack_key

Phase = Literal["assess", "generate", "filter", "verify"]
Status = Literal["done", "failed", "quarantined", "dropped"]
PHASES: tuple[Phase, ...] = get_args(Phase)
STATUSES: tuple[Status, ...] = get_args(Status)
MAX_ATTEMPT = 2**16 - 1
_HASH = re.compile("[0-9a-f]{16}")
_CHECKSUM = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n')
_CHECKSUM_LENGTH = len(b',"crc32":"01234567"}\n')


class JournalError(ValueError):
    """A work folder that cannot be used: taken, full, or not one of ours."""


@dataclass(frozen=True)
class JournalRow:
    """What one attempt at one sample of one query came to, in one phase.

    Args:
        query_id: `D:N` of the query.
        phase: Phase that the row belongs to.
        sample: Which of the query's samples, from 0.
        status: `done`; `dropped`, which is done with a verdict against the sample; `failed`, to be
            tried again; `quarantined`, failed for good.
        input_hash: 16 hexadecimal digits, of `compute_input_hash`: what the row depends on.
        attempt: Which attempt at this input, from 1.
        result: JSON values; a `done` or `dropped` row has at least one.
        error: Why the attempt failed, or None.

    Raises:
        ValueError: A field is out of its range, a row that counts as done holds nothing, or a
            failed one gives no error.
    """

    query_id: str
    phase: Phase
    sample: int
    status: Status
    input_hash: str
    attempt: int
    result: dict[str, Any]
    error: str | None = None

    def __post_init__(self) -> None:
        name = f"row of query {self.query_id}, sample {self.sample}, phase {self.phase}"
        pack_key(self.query_id, self.sample)
        if self.phase not in PHASES or self.status not in STATUSES:
            raise ValueError(
                f"{name}: phase is none of {list(PHASES)} or status {self.status!r} none of "
                f"{list(STATUSES)}"
            )
        if not isinstance(self.input_hash, str) or not _HASH.fullmatch(self.input_hash):
            raise ValueError(f"{name}: input_hash {self.input_hash!r} is not 16 hexadecimal digits")
        if type(self.attempt) is not int or not 1 <= self.attempt <= MAX_ATTEMPT:
            raise ValueError(f"{name}: attempt {self.attempt!r} is not in 1 .. {MAX_ATTEMPT}")
        has_error = bool(self.error and self.error.strip())
        if self.status in ("failed", "quarantined"):
            if not has_error:
                raise ValueError(f"{name}: it is {self.status} and gives no error")
        elif self.error is not None or not self.result:
            raise ValueError(
                f"{name}: it is {self.status}, so it needs a result and no error; it has "
                f"{self.result!r:.80} and {self.error!r:.80}"
            )

    @property
    def key(self) -> int:
        """The row's key within its phase."""
        return pack_key(self.query_id, self.sample)


def encode_line(row: JournalRow) -> bytes:
    r"""Return the line of a row, with its checksum and a newline.

    Raises:
        ValueError: Its result is not made of JSON values.

    >>> row = JournalRow("9:3", "assess", 0, "done", "0123456789abcdef", 1, {"difficulty": 1})
    >>> decode_line(encode_line(row)) == row
    True
    >>> decode_line(encode_line(row)[:-9] + b"\n") is None
    True
    """
    try:
        text = json.dumps(vars(row), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the result of query {row.query_id}, sample {row.sample}, phase {row.phase} is not "
            f"made of JSON values: {error}"
        ) from error
    body = text.encode()
    return b'%b,"crc32":"%08x"}\n' % (body[:-1], zlib.crc32(body))


def decode_line(line: bytes) -> JournalRow | None:
    """Return the row of a line, or None if the line is not as it was written.

    Raises:
        JournalError: The line is whole, but holds no row: another version's.
    """
    end = len(line) - _CHECKSUM_LENGTH
    found = _CHECKSUM.fullmatch(line, max(end, 0))
    body = line[: max(end, 0)] + b"}"
    if found is None or zlib.crc32(body) != int(found[1], 16):
        return None
    try:
        return JournalRow(**json.loads(body))
    except (TypeError, ValueError) as error:
        raise JournalError(
            f"{line[:80]!r} is of another version: {error}; choose another work folder"
        ) from error
