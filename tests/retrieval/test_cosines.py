import pytest
import torch

from tests.reference.search import round_unit_vectors
from tracelib.retrieval.cosines import merge_top_k, round_units


@pytest.mark.parametrize(
    ("kind", "exponents"),
    [
        (torch.float16, range(-20, 12)),
        (torch.bfloat16, range(-130, 120, 5)),
        (torch.float32, range(-140, 120, 5)),
        (torch.float64, range(-536, 505, 8)),
    ],
)
def test_units_of_any_length(kind, exponents):
    # the reference scales after it divides; the least norms here are of squares that are subnormal
    for exponent in exponents:
        rows = (torch.randn(30, 40).double() * 2.0**exponent).to(kind)
        rows[:, ::7] *= 2.0**-20  # to zero, and to subnormal numbers
        rows = rows[rows.double().norm(dim=1) > 0]
        assert len(rows) > 20
        assert torch.equal(round_units(rows, "candidate", 0), round_unit_vectors(rows))


@pytest.mark.parametrize("scale", [2.0**-505, 2.0**-100, 1.0, 2.0**100, 2.0**505])
def test_units_of_the_shortest_and_the_longest(scale):
    rows = torch.tensor([[3.0, -4.0], [-1.0, 0.0]]).double() * scale
    expected = [[round(0.6 * 2**26), round(-0.8 * 2**26)], [-(2**26), 0]]
    assert round_units(rows, "candidate", 0).tolist() == expected


def test_units_half_way_between_steps():
    # of length 5 and 7, which no binary number divides: a quotient rounded twice would go astray
    for length in (5.0, 7.0):
        steps = torch.randint(2**25, (2000, 1)).double() + 0.5
        values = length * steps / 2**26
        rows = torch.cat([values, (length**2 - values**2).sqrt()], dim=1)
        assert torch.equal(round_units(rows, "candidate", 0), round_unit_vectors(rows))


def test_merging_short_parts():
    nothing = torch.full((1, 2), -torch.inf), torch.full((1, 2), -1)
    some = torch.tensor([[0.25, -0.5, -torch.inf]]), torch.tensor([[9, 3, -1]])
    ties = torch.tensor([[0.25, -0.0, -0.5]]), torch.tensor([[2**32 - 1, 5, 2]])
    scores, places = merge_top_k([nothing, some, ties], 7)
    assert places.tolist() == [[9, 2**32 - 1, 5, 2, 3, -1, -1]]
    assert scores.tolist() == [[0.25, 0.25, 0, -0.5, -0.5, -torch.inf, -torch.inf]]
    assert merge_top_k([some, ties], 2)[1].tolist() == [[9, 2**32 - 1]]
    assert merge_top_k([nothing], 9)[1].tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("parts", "k", "message"),
    [
        ([], 1, r"parts of shapes \[\]; expected"),
        ([(torch.zeros(2, 3), torch.zeros(2, 2).long())], 1, "expected one or more pairs"),
        ([(torch.zeros(2, 3), torch.zeros(2, 3).long())] * 2, 0, "k is 0; allowed 1"),
        (
            [(torch.zeros(n, 3), torch.zeros(n, 3).long()) for n in (1, 2)],
            1,
            r"\(1, 3\).*\(2, 3\).*one Q",
        ),
    ],
)
def test_parts_are_checked(parts, k, message):
    with pytest.raises(ValueError, match=message):
        merge_top_k(parts, k)
