import pytest
import torch
from torch.nn import functional

from tracelib.retrieval.coarse import (
    COARSE_TYPES,
    choose_types,
    find_reaching,
    find_slack,
    is_accurate,
    multiply,
    round_rows,
)


def draw_units(num_rows, num_dimensions, power=1):
    return functional.normalize(torch.randn(num_rows, num_dimensions) ** power)


def round_both(queries, rows, kind):
    ones = torch.ones(1, 1)
    return round_rows(queries, ones, kind, one_step=False), round_rows(rows, ones, kind, True)


@pytest.mark.parametrize("kind", COARSE_TYPES, ids=str)
@pytest.mark.parametrize("power", [1, 5])
@pytest.mark.parametrize("num_dimensions", [1, 3, 64, 2000])
def test_distance_is_that_of_the_coarse_vector(num_dimensions, power, kind):
    units = draw_units(50, num_dimensions, power)
    lengths = torch.rand(50, 1) + 0.5
    for one_step in (False, True):
        found = round_rows(units * lengths, lengths, kind, one_step)
        gap = (units.double() - found.values.double() * found.step).norm(dim=1, keepdim=True)
        assert found.values.dtype is kind
        assert torch.allclose(found.distance.double(), gap, atol=1e-6)
        assert found.step.numel() in {1, 1 if one_step else 50}


@pytest.mark.parametrize("kind", COARSE_TYPES, ids=str)
@pytest.mark.parametrize("power", [1, 5])
def test_no_pair_that_reaches_is_lost(power, kind):
    queries, rows = draw_units(40, 96, power), draw_units(1003, 96, power)
    ours, theirs = round_both(queries, rows, kind)
    cosines = queries.double() @ rows.double().T
    for rank in (1, 10, 500, 1003):
        kth = cosines.topk(rank, dim=1).values[:, -1:]
        query, row = find_reaching(multiply(ours.values, theirs.values), ours, theirs, kth, 1.0)
        found = torch.zeros_like(cosines, dtype=torch.bool)
        found[query, row] = True
        assert found.sum() == len(query)
        assert found[cosines >= kth].all()
        # and the bound is of use: what is far below is dropped
        assert not found[cosines < kth - 0.3].any()


@pytest.mark.parametrize("kind", COARSE_TYPES, ids=str)
def test_bound_is_needed(kind):
    # the negative control: without it, hits would be lost
    queries = draw_units(200, 96)
    rows = functional.normalize(queries[:1] + 0.01 * torch.randn(1000, 96))
    ours, theirs = round_both(queries, rows, kind)
    cosines = queries.double() @ rows.double().T
    kth = cosines.topk(10, dim=1).values[:, -1:]
    coarse = multiply(ours.values, theirs.values).double() * ours.step * theirs.step
    assert ((coarse < kth) & (cosines >= kth)).any()


def test_too_many_pairs_are_not_named():
    queries, rows = draw_units(10, 32), draw_units(100, 32)
    ours, theirs = round_both(queries, rows, torch.int8)
    products = multiply(ours.values, theirs.values)
    lowest = torch.full((10, 1), -1.0, dtype=torch.float64)
    assert find_reaching(products, ours, theirs, lowest, 0.5) is None
    assert len(find_reaching(products, ours, theirs, lowest, 1.0)[0]) == 1000


@pytest.mark.parametrize("kind", COARSE_TYPES, ids=str)
@pytest.mark.parametrize("num_dimensions", [2, 3, 700])
def test_products_are_as_accurate_as_assumed(num_dimensions, kind):
    queries, rows = draw_units(50, num_dimensions), draw_units(300, num_dimensions)
    ours, theirs = round_both(queries, rows, kind)
    products = multiply(ours.values, theirs.values)
    assert is_accurate(products, ours.values, theirs.values)
    sloppy = (products * 0.9).to(products.dtype)
    assert not is_accurate(sloppy, ours.values, theirs.values)


def test_sums_in_bfloat16_are_found_out():
    ours, theirs = round_both(draw_units(20, 700).abs(), draw_units(30, 700).abs(), torch.bfloat16)
    total = torch.zeros(20, 30, dtype=torch.bfloat16)
    for a, b in zip(ours.values.T, theirs.values.T, strict=True):
        total += a[:, None] * b
    assert not is_accurate(total, ours.values, theirs.values)


def test_factors_rounded_to_bfloat16_do_no_harm():
    # what a user may ask of float32 products; coarse numbers have no more bits to lose
    precision = torch.get_float32_matmul_precision()
    ours, theirs = round_both(draw_units(128, 512), draw_units(1024, 512), torch.float32)
    try:
        torch.set_float32_matmul_precision("medium")
        products = multiply(ours.values, theirs.values)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert is_accurate(products, ours.values, theirs.values)


def test_types_are_chosen_among_the_accurate():
    queries, rows = draw_units(100, 64), draw_units(800, 64)
    chosen = choose_types(queries, rows, multiply)
    assert chosen
    assert chosen[-1] is not torch.int8
    assert len(chosen) <= 2
    assert choose_types(queries, rows, multiply, (torch.float32,)) == [torch.float32]

    def err_in_bfloat16(a, b):
        return multiply(a, b) * (0.5 if a.dtype is torch.bfloat16 else 1)

    assert torch.bfloat16 not in choose_types(queries, rows, err_in_bfloat16)
    assert choose_types(queries, rows, err_in_bfloat16, (torch.bfloat16,)) == []
    assert choose_types(queries, rows, lambda a, b: multiply(a, b) * 0.5) == []


@pytest.mark.parametrize("num_dimensions", [1, 2**31 // 127**2])
def test_int8_is_left_out_where_torch_or_int32_fails(num_dimensions):
    rows = draw_units(4, num_dimensions)
    assert choose_types(rows, rows, multiply, (torch.int8,)) == []


def test_slack_holds_for_worst_sums():
    # all rounded down: the most that D additions of positive numbers can lose
    values = torch.full((1, 4096), 1 / 64 + 2.0**-30)
    exact = values.double() @ values.double().T
    total = torch.zeros(())
    for value in values[0]:
        total = total + value * value
    assert (total - exact).abs().item() < find_slack(4096)
