"""Products of oneDNN are those of the projections."""

import copy
import re

import pytest
import torch
from torch import nn

from tracelib.models import products
from tracelib.models.products import Product


@pytest.fixture(params=["packed", "as it is", "by torch"])
def way(request, monkeypatch):
    """How weights are handed over."""
    if request.param == "as it is":
        monkeypatch.setattr(products, "_MOST_PACKED", 0)
    if request.param == "by torch":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    return request.param


def make(sizes, bias, dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Linear(24, size, bias=bias).to(dtype) for size in sizes]


def compute(projections, rows):
    """Return the results side by side, in float64."""
    rows = rows.double()
    return torch.cat([copy.deepcopy(p).double()(rows) for p in projections], dim=-1)


def measure(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", [(1,), (15,), (16,), (200,), (3, 7), (9, 1), (64, 1)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(40,), (16, 8, 8)])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
@torch.no_grad()
def test_equal_to_the_projections(way, sizes, bias, shape, dtype, limit):
    projections = make(sizes, bias, dtype)
    rows = torch.randn(*shape, 24).to(dtype)
    states = torch.randn(*shape, sum(sizes)).to(dtype)
    product, expected = Product(*projections), compute(projections, rows)
    for _ in range(2):  # weights are laid together in the first
        found = product(rows)
        assert found.shape == expected.shape
        assert found.dtype == dtype
        assert measure(found, expected) < limit
        assert measure(product.add_to(states, rows), states.double() + expected) < limit
    assert measure(product(rows.flip(-1)), expected) > 0.1  # the control
    assert measure(compute(projections, rows), expected) < 1e-12


@torch.no_grad()
def test_weights_are_those_of_the_last_refresh_or_move(way):
    (projection,) = projections = make((40,), True)
    product, rows = Product(projection), torch.randn(32, 24)
    product(rows)
    projection.weight.data.mul_(2)  # which nothing tells
    product.refresh()
    assert measure(product(rows), compute(projections, rows)) < 1e-6
    projection.weight.data = torch.randn(40, 24)
    assert measure(product(rows), compute(projections, rows)) < 1e-6
    projection.to(torch.bfloat16)
    assert product(rows.bfloat16()).dtype == torch.bfloat16


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@needs_onednn
@torch.no_grad()
def test_a_weight_that_stays_is_put_in_order_once(monkeypatch):
    packed, pack = [], products._pack
    monkeypatch.setattr(products, "_pack", lambda weight: packed.append(1) or pack(weight))
    (projection,) = make((40,), False)
    product = Product(projection)
    for _ in range(3):
        product.refresh()
        product(torch.randn(32, 24))
    assert len(packed) == 1
    projection.weight[3, 4] += 1
    product.refresh()
    assert len(packed) == 2


@torch.no_grad()
def test_a_copy_computes_by_itself():
    (projection,) = make((40,), True)
    product, rows = Product(projection), torch.randn(32, 24)
    expected = product(rows)
    copied = copy.deepcopy(product)
    projection.weight.zero_()
    product.refresh()
    assert torch.equal(copied(rows), expected)
    assert torch.equal(product(rows), projection.bias.expand(32, -1))


@needs_onednn
def test_large_weights_are_not_copied():
    large = nn.Linear(1024, 1024)
    product = Product(large)
    product.refresh()
    assert product._packed.data_ptr() == large.weight.data_ptr()


def test_who_turns_onednn_off_is_heard():
    product = Product(nn.Linear(24, 40))
    with torch.backends.mkldnn.flags(enabled=False):
        product.refresh()
    assert product._packed is None


def test_other_projections_are_refused():
    adapted = type("Adapted", (nn.Linear,), {})(4, 4)
    with pytest.raises(ValueError, match=re.escape("a projection is a Adapted, not a plain")):
        Product(nn.Linear(4, 4), adapted)
