import pytest

from tracelib.construction.journal.row_key import MAX_SAMPLE, pack_key, unpack_key

LAST = ("131071:68719476735", MAX_SAMPLE)


def test_keys_are_exact_and_fit_64_bits():
    places = [("0:0", 0), ("0:0", 1), ("0:1", 0), ("1:0", 0), ("10:11", 1), ("1:011"[:3], 2), LAST]
    keys = [pack_key(*place) for place in places]
    assert len(set(keys)) == len(places)
    assert [unpack_key(key) for key in keys] == places
    assert max(keys) == 2**63 - 1


@pytest.mark.parametrize(
    ("query_id", "sample", "message"),
    [
        ("9", 0, "'9' is no 'D:N'"),
        ("9:x", 0, "is no 'D:N'"),
        ("9:-1", 0, "is no 'D:N'"),
        ("131072:1", 0, "D in 0 .. 131071"),
        ("1:68719476736", 0, "N in 0 .. 68719476735"),
        ("9:01", 0, "another way to write 9:1"),
        ("9:1 ", 0, "another way to write 9:1"),
        ("9:1", 1024, "sample 1024 of query 9:1 is not in 0 .. 1023"),
        ("9:1", -1, "sample -1"),
        ("9:1", True, "sample True"),
    ],
)
def test_what_has_no_key_of_its_own_is_refused(query_id, sample, message):
    with pytest.raises(ValueError, match=message):
        pack_key(query_id, sample)
