import json
import zlib

import pytest

from tracelib.construction.journal.journal_row import (
    JournalError,
    JournalRow,
    decode_line,
    encode_line,
)

HASH = "0123456789abcdef"
ROW = JournalRow(
    "9:3", "verify", 1, "dropped", HASH, 2, {"reason": "a\nb\u2028ü\ud800\0", "n": 0.1}
)


def test_a_line_is_one_json_object_that_reads_back():
    line = encode_line(ROW)
    assert line.isascii()
    assert line.count(b"\n") == 1
    fields = json.loads(line)
    assert list(fields)[-1] == "crc32"
    assert (
        fields.pop("crc32")
        == f"{zlib.crc32(json.dumps(fields, separators=(',', ':')).encode()):08x}"
    )
    assert decode_line(line) == ROW


def test_every_cut_and_every_changed_byte_is_seen():
    line = encode_line(ROW)
    for place in range(len(line)):
        assert decode_line(line[:place]) is None
        assert decode_line(line[: max(place - 1, 0)] + b"\n") is None
        assert decode_line(line[:place] + b"\0" * (len(line) - place)) is None
        for change in (1, 0x20, 0x80):
            changed = line[:place] + bytes([line[place] ^ change]) + line[place + 1 :]
            assert decode_line(changed) is None
    assert decode_line(encode_line(ROW)[:-1] + encode_line(ROW)) is None


def test_a_whole_line_of_another_version_is_no_damage():
    body = json.dumps({**vars(ROW), "novelty": 1}).encode()
    with pytest.raises(JournalError, match=r"of another version.*novelty"):
        decode_line(b'%b,"crc32":"%08x"}\n' % (body[:-1], zlib.crc32(body)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_id": "x"}, "is no 'D:N'"),
        ({"phase": "judge"}, "phase is none of"),
        ({"status": "ok"}, "status 'ok'"),
        ({"input_hash": "0123"}, "input_hash '0123' is not 16"),
        ({"input_hash": HASH.upper()}, "is not 16 hexadecimal digits"),
        ({"attempt": 0}, "attempt 0 is not in 1 .. 65535"),
        ({"status": "done", "result": {}}, "it is done, so it needs a result"),
        ({"error": "but"}, "needs a result and no error"),
        ({"error": ""}, "needs a result and no error"),
        ({"status": "failed"}, "it is failed and gives no error"),
        ({"status": "quarantined", "error": " "}, "it is quarantined and gives no error"),
    ],
)
def test_a_row_that_says_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        JournalRow(**{**vars(ROW), **change})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_a_result_that_is_not_json_is_refused(value):
    with pytest.raises(ValueError, match="result of query 9:3, sample 1, phase verify is not made"):
        encode_line(JournalRow("9:3", "verify", 1, "done", HASH, 1, {"value": value}))
