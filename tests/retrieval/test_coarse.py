from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tracelib.retrieval.coarse import (
    COARSE_TYPES,
    CoarseRows,
    choose_types,
    find_least_best,
    find_reaching,
    find_slack,
    is_accurate,
    multiply,
    round_rows,
)


def draw_units(num_rows, num_dimensions, power=1):
    return functional.normalize(torch.randn(num_rows, num_dimensions) ** power)


def round_both(queries, rows, kind, num_leading=None):
    ones = torch.ones(1, 1)
    ours = round_rows(queries, ones, kind, one_step=False, num_leading=num_leading)
    return ours, round_rows(rows, ones, kind, one_step=True, num_leading=num_leading)


def mark_reaching(ours, theirs, kth):
    """Return `[B, N]` whether a pair is found at the scores."""
    products = multiply(ours.values, theirs.values)
    query, row = find_reaching(products, ours, theirs, kth, 1.0)
    found = torch.zeros(products.shape, dtype=torch.bool)
    found[query, row] = True
    assert found.sum() == len(query)
    return found


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
        found = mark_reaching(ours, theirs, kth)
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


@pytest.mark.parametrize("num_leading", [1, 64, 576])
def test_distance_of_leading_coordinates_is_never_below_the_true_one(num_leading):
    # the worst of rounding: every coordinate but the greatest is half a step off, or nearly
    steps = torch.randint(-126, 126, (400, num_leading)) + 0.5 - 1e-5 * torch.rand(400, 1)
    steps[:, 0] = 127
    rows = torch.cat([steps, torch.randn(400, 9)], dim=1) * 2.0 ** torch.empty(400, 1).uniform_(
        -39, 39
    )
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    units = rows[:, :num_leading].double() / norms.double()
    for one_step in (False, True):
        found = round_rows(rows, norms, torch.int8, one_step, num_leading)
        gap = (units - found.values.double() * found.step).norm(dim=1, keepdim=True)
        assert (gap <= found.distance).all()
        assert torch.allclose(
            found.distance.double(), 0.5001 * num_leading**0.5 * found.step, rtol=1e-6
        )
    if num_leading > 1:
        found = round_rows(rows, norms, torch.int8, False, num_leading)
        gap = (units - found.values.double() * found.step).norm(dim=1, keepdim=True)
        assert (gap > 0.98 * found.distance).all()  # the worst it is


def draw_tailed(num_rows, tail):
    """Unit vectors whose last 32 of 96 coordinates agree, about this long beside the others."""
    rest = functional.normalize(1 + torch.randn(num_rows, 32)) * (0.5 + torch.rand(num_rows, 1))
    return functional.normalize(torch.cat([draw_units(num_rows, 64), tail * rest], dim=1))


@pytest.mark.parametrize("tail", [0.01, 1.0, 3.0, 1e6])
def test_no_pair_that_reaches_is_lost_by_its_leading_coordinates(tail):
    queries, rows = draw_tailed(40, tail), draw_tailed(1003, tail)
    ours, theirs = round_both(queries, rows, torch.int8, num_leading=64)
    assert ours.values.shape == (40, 64)
    cosines = queries.double() @ rows.double().T
    rests = queries[:, 64:].double().norm(dim=1)[:, None] * rows[:, 64:].double().norm(dim=1).max()
    for rank in (1, 10, 500, 1003):
        kth = cosines.topk(rank, dim=1).values[:, -1:]
        found = mark_reaching(ours, theirs, kth)
        assert found[cosines >= kth].all()
        # and of use: the bound is the rests' and little more
        assert not found[cosines < kth - 2 * rests - 0.3].any()
    if 0.1 < tail < 10:
        # the negative control: without the rest, hits would be lost
        kth = cosines.topk(100, dim=1).values[:, -1:]
        short = mark_reaching(replace(ours, rest=torch.zeros(40, 1)), theirs, kth)
        assert not short[cosines >= kth].all()


def test_leading_distances_are_needed():
    # the negative control: with the rest, but without what rounding takes, hits would be lost
    lead = draw_units(200, 64)
    queries = functional.pad(lead, (0, 32))
    rows = functional.normalize(queries[:1] + 0.01 * functional.pad(torch.randn(1000, 64), (0, 32)))
    ours, theirs = round_both(queries, rows, torch.int8, num_leading=64)
    cosines = queries.double() @ rows.double().T
    kth = cosines.topk(10, dim=1).values[:, -1:]
    assert mark_reaching(ours, theirs, kth)[cosines >= kth].all()
    near = [replace(side, distance=torch.zeros_like(side.distance)) for side in (ours, theirs)]
    assert not mark_reaching(*near, kth)[cosines >= kth].all()


@pytest.mark.parametrize("num_bare", [1, 30])
def test_leading_coordinates_may_all_be_zero(num_bare):
    # as of sparse embeddings, which have no step of their own there
    queries, rows = draw_units(30, 96), draw_units(300, 96)
    queries[:num_bare, :64] = 0
    rows[: num_bare * 10, :64] = 0
    queries, rows = functional.normalize(queries), functional.normalize(rows)
    ours, theirs = round_both(queries, rows, torch.int8, num_leading=64)
    assert (ours.values[:num_bare] == 0).all()
    cosines = queries.double() @ rows.double().T
    kth = cosines.topk(10, dim=1).values[:, -1:]
    for scores in (kth, torch.zeros_like(kth)):
        assert mark_reaching(ours, theirs, scores)[cosines >= scores].all()
    out_of_reach = mark_reaching(ours, theirs, torch.ones(30, 1) * 2)
    assert not out_of_reach.any()


def group_best(cosines):
    """Return `[B, G]` the best of each 32 rows, whole groups only."""
    return torch.stack(
        [part.amax(dim=1) for part in cosines.split(32, 1) if part.shape[1] == 32], 1
    )


@pytest.mark.parametrize("kind", COARSE_TYPES, ids=str)
@pytest.mark.parametrize("power", [1, 5])
@pytest.mark.parametrize("num_dimensions", [2, 96, 700])
def test_best_of_a_group_is_not_overrated(num_dimensions, power, kind):
    queries = draw_units(40, num_dimensions, power)
    rows = functional.normalize(draw_units(1003, num_dimensions, power) + queries[:1])
    ours, theirs = round_both(queries, rows, kind)
    found = find_least_best(multiply(ours.values, theirs.values), ours, theirs)
    best = group_best(queries.double() @ rows.double().T)
    assert found.shape == best.shape == (40, 31)
    assert found.dtype == torch.float32
    assert (found <= best).all()
    # and of use: by rounding at both ends of the bound, at most
    worst = 0.3 if kind is torch.int8 else 0.03
    assert (found > best - worst).all()
    # the negative control: without the bound, some would be
    exact = [replace(ours, distance=0 * ours.distance, slack=0.0)]
    exact.append(replace(theirs, distance=0 * theirs.distance))
    bare = find_least_best(multiply(ours.values, theirs.values).double(), *exact)
    assert (bare > best).any()


@pytest.mark.parametrize("tail", [0.01, 0.5, 3.0])
def test_best_of_a_group_is_not_overrated_by_leading_coordinates(tail):
    queries, rows = draw_tailed(40, tail), draw_tailed(640, tail)
    queries[:20, 64:] *= -1
    ours, theirs = round_both(queries, rows, torch.int8, num_leading=64)
    found = find_least_best(multiply(ours.values, theirs.values), ours, theirs)
    assert (found <= group_best(queries.double() @ rows.double().T)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_best_of_a_group_may_be_a_product_rounded_up(sign):
    # coarse values that are the vectors leave the rounding of products as the only error
    queries, rows = draw_units(200, 2).bfloat16(), draw_units(320, 2).bfloat16()
    queries, rows = queries.abs(), sign * rows.abs()
    ours, theirs = (
        CoarseRows(
            values=values,
            step=torch.ones(1, 1).double(),
            distance=torch.zeros(len(values), 1),
            rest=torch.zeros(len(values), 1),
            slack=find_slack(2),
        )
        for values in (queries, rows)
    )
    products = multiply(ours.values, theirs.values)
    best = group_best(queries.double() @ rows.double().T)
    found = find_least_best(products, ours, theirs)
    assert (found <= best).all()
    assert (found > best - 0.02).all()
    # the negative control: as float32, the same products are taken to be exact
    assert (find_least_best(products.float(), ours, theirs) > best).any()


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
    if kind is torch.float32:  # sums may take half of the slack: the rest is for norms
        for share, is_fine in ((0.4, True), (0.6, False)):
            sums = products + share * find_slack(num_dimensions)
            assert is_accurate(sums, ours.values, theirs.values) is is_fine


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


def test_int8_is_left_out_where_sums_are_cut_short():
    # as where a machine adds in 16 bits, which none but the greatest products exceed
    def saturate(a, b):
        products = multiply(a, b)
        return products.clamp(max=127**2 * 64 - 1) if a.dtype is torch.int8 else products

    queries, rows = draw_units(40, 64), draw_units(300, 64)
    assert choose_types(queries, rows, saturate, (torch.int8, torch.float32)) == [torch.float32]
    assert choose_types(queries, rows, multiply, (torch.int8,)) == [torch.int8]


def test_slack_holds_for_worst_sums():
    # all rounded down: the most that D additions of positive numbers can lose
    values = torch.full((1, 4096), 1 / 64 + 2.0**-30)
    exact = values.double() @ values.double().T
    total = torch.zeros(())
    for value in values[0]:
        total = total + value * value
    assert (total - exact).abs().item() < find_slack(4096) / 2
