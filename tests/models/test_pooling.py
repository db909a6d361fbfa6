import pytest
import torch

from tracelib.models.pooling import find_emb_position, find_read_position


def test_finds_the_first_embedding_token():
    ids = torch.tensor([[5, 9, 9, 0], [9, 1, 1, 1], [1, 2, 3, 9]])
    assert find_emb_position(ids, 9).tolist() == [1, 0, 3]


def test_rows_without_an_embedding_token_are_named():
    ids = torch.tensor([[1, 2], [9, 1], [3, 4]])
    with pytest.raises(ValueError, match=r"rows \[0, 2\] of 3 hold no embedding token \(id 9\)"):
        find_emb_position(ids, 9)


@pytest.mark.parametrize(("offset", "expected"), [(0, [1, 3]), (-1, [0, 2])])
def test_reads_at_or_before_the_token(offset, expected):
    assert find_read_position(torch.tensor([1, 3]), offset).tolist() == expected


def test_a_token_with_nothing_before_it_is_refused():
    assert find_read_position(torch.tensor([0, 0]), 0).tolist() == [0, 0]
    with pytest.raises(ValueError, match="position 0 has no state before it"):
        find_read_position(torch.tensor([1, 0]), -1)


@pytest.mark.parametrize("offset", [1, -2])
def test_other_offsets_are_refused(offset):
    with pytest.raises(ValueError, match=f"read_offset is {offset}, allowed are -1 and 0"):
        find_read_position(torch.tensor([1, 1]), offset)
