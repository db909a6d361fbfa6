import pytest
import torch

from tracelib.losses.collisions import count_duplicates, find_false_negatives


@pytest.mark.parametrize("num_ids", [2, 6, 40])
def test_pairs_and_rates_are_those_of_a_double_loop(num_ids):
    candidate_ids = torch.randint(num_ids, (30,))
    targets = torch.randint(30, (13,))
    foreign = torch.randint(-1, num_ids, (13, 4))  # -1 pads; some are named twice
    positive_ids = torch.cat([foreign, candidate_ids[targets, None]], dim=1)
    expected = [
        (row, column)
        for row in range(13)
        for column in range(30)
        if column != targets[row] and candidate_ids[column] in positive_ids[row]
    ]
    rows, columns = find_false_negatives(targets, positive_ids, candidate_ids)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert expected
    repeats = [i for i, name in enumerate(candidate_ids) if name in candidate_ids[:i]]
    for chunk_size in (1, 5, 100):
        duplicates, collisions = count_duplicates(targets, positive_ids, candidate_ids, chunk_size)
        assert duplicates == len(repeats) / 30
        assert collisions == len(expected) / (13 * 29)


def test_distinct_candidates_neither_repeat_nor_collide():
    ids = torch.tensor([3, 5, 9])
    assert count_duplicates(torch.tensor([0, 2]), torch.tensor([[3], [9]]), ids) == (0, 0)


def test_one_candidate_has_nothing_to_collide_with():
    assert count_duplicates(torch.tensor([0]), torch.tensor([[3]]), torch.tensor([3])) == (0, 0)
