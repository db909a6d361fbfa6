"""One integer that stands for a query and a sample of it."""

from __future__ import annotations

MAX_SAMPLE = 2**10 - 1
_MAX_NUMBER = 2**36 - 1
_MAX_DATASET = 2**17 - 1


def pack_key(query_id: str, sample: int) -> int:
    """Return the key of a row, 0 .. 2**63 - 1; no two rows of a phase share one.

    Args:
        query_id: `D:N`, as everywhere.
        sample: Which of the query's samples, from 0.

    Raises:
        ValueError: The id is no `D:N`, or a number is out of its range.

    >>> unpack_key(pack_key("9:15626", 3))
    ('9:15626', 3)
    """
    dataset, _, number = query_id.partition(":")
    try:
        dataset_id, query_number = int(dataset), int(number)
    except ValueError:
        dataset_id = query_number = -1
    if not (0 <= dataset_id <= _MAX_DATASET and 0 <= query_number <= _MAX_NUMBER):
        raise ValueError(
            f"query_id {query_id!r} is no 'D:N' with D in 0 .. {_MAX_DATASET}, "
            f"N in 0 .. {_MAX_NUMBER}"
        )
    if query_id != f"{dataset_id}:{query_number}":
        raise ValueError(
            f"query_id {query_id!r} is another way to write {dataset_id}:{query_number}"
        )
    if type(sample) is not int or not 0 <= sample <= MAX_SAMPLE:
        raise ValueError(f"sample {sample!r} of query {query_id} is not in 0 .. {MAX_SAMPLE}")
    return (dataset_id << 46) | (query_number << 10) | sample


def unpack_key(key: int) -> tuple[str, int]:
    """Return the query id and the sample that a key stands for."""
    return f"{key >> 46}:{(key >> 10) & _MAX_NUMBER}", key & MAX_SAMPLE
