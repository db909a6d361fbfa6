import pytest
import torch
from torch.nn import functional

from tracelib.retrieval import coarse, fused
from tracelib.retrieval.coarse import multiply, round_rows
from tracelib.retrieval.fused import PackedQueries, is_usable
from tracelib.retrieval.search import TopKSearch

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="the processor multiplies no bytes"
)
ONE = torch.ones(1, 1)


@pytest.mark.parametrize("num_dimensions", [1, 3, 64, 100, 576, 8192])
@pytest.mark.parametrize(("num_queries", "num_rows"), [(1, 1), (7, 50), (40, 333)])
def test_marks_tell_who_reaches(num_queries, num_rows, num_dimensions):
    queries = torch.randint(-127, 128, (num_queries, num_dimensions)).to(torch.int8)
    rows = torch.randint(-127, 128, (num_rows, num_dimensions)).to(torch.int8)
    queries[0] = rows[0] = 127  # the greatest sums, and the least
    rows[-1] = -127
    products = (queries.double() @ rows.double().T).T
    packed = PackedQueries(queries)
    for rank in (0, num_rows // 2, num_rows - 1):
        least = products.sort(dim=0).values[rank]
        marks = packed.mark_reaching(rows, least)
        assert marks.shape == (num_rows, num_queries + -num_queries % 8)
        assert not marks[:, num_queries:].any()
        is_marked = marks[:, :num_queries] != 0
        assert is_marked[products >= least].all()
        assert not is_marked[products < least - 64].any()


@pytest.mark.parametrize("least", [-1e300, -1e12, 1e12, 1e300])
def test_thresholds_may_be_out_of_reach(least):
    values = torch.full((3, 64), 127, dtype=torch.int8)
    marks = PackedQueries(values).mark_reaching(values, torch.full((3,), least, dtype=torch.double))
    assert (marks[:, :3] != 0).all() == (least < 0)


@pytest.mark.parametrize("num_leading", [None, 64])
def test_pairs_are_those_of_products_made_first(num_leading):
    queries = functional.normalize(torch.randn(50, 96))
    rows = functional.normalize(torch.randn(1003, 96) + 2 * queries[:1])
    ours = round_rows(queries, ONE, torch.int8, False, num_leading)
    theirs = round_rows(rows, ONE, torch.int8, True, num_leading)
    packed, products = PackedQueries(ours.values), multiply(ours.values, theirs.values)
    cosines = queries.double() @ rows.double().T
    for rank in (1, 20, 500):
        scores = cosines.topk(rank, dim=1).values[:, -1:]
        query, row = fused.find_reaching(ours, packed, theirs, scores, 1.0)
        assert (query.diff() >= 0).all()
        found = set(zip(query.tolist(), row.tolist(), strict=True))
        assert len(found) == len(query)
        query, row = coarse.find_reaching(products, ours, theirs, scores, 1.0)
        expected = set(zip(query.tolist(), row.tolist(), strict=True))
        assert expected <= found
        # and few more: those within 64 of a threshold
        assert len(found - expected) <= 0.02 * len(found) + 5


def test_too_many_pairs_are_not_named():
    units = functional.normalize(torch.randn(100, 64))
    ours = round_rows(units[:10], ONE, torch.int8, False)
    theirs = round_rows(units, ONE, torch.int8, True)
    packed, lowest = PackedQueries(ours.values), torch.full((10, 1), -1.0).double()
    assert fused.find_reaching(ours, packed, theirs, lowest, 0.5) is None
    assert len(fused.find_reaching(ours, packed, theirs, lowest, 1.0)[0]) == 1000
    # one mark in each word of eight: few words, and few pairs
    one = torch.full((10, 1), 2.0).double()
    one[0], one[8] = -1, -1
    assert fused.find_reaching(ours, packed, theirs, one, 0.15) is None
    assert len(fused.find_reaching(ours, packed, theirs, one, 0.2)[0]) == 200


def test_a_search_uses_it_and_finds_the_same(monkeypatch):
    queries, rows = torch.randn(30, 100), torch.randn(9000, 100)
    rows[:3000] += 3 * queries[torch.randint(30, (3000,))]
    called = []
    find = fused.find_reaching
    monkeypatch.setattr(fused, "find_reaching", lambda *a: called.append(1) or find(*a))
    results = []
    for usable in (is_usable, lambda num_dimensions: False):
        monkeypatch.setattr("tracelib.retrieval.tiles.is_usable", usable)
        search = TopKSearch(queries, 20, (torch.int8,))
        search.add(rows, 0)
        results.append(search.result())
        assert bool(called) == (usable is is_usable)
        called.clear()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_it_is_used_where_the_processor_can():
    assert all(is_usable(num_dimensions) for num_dimensions in (64, 100, 576, 768))


def test_an_operator_that_errs_or_lacks_is_not_used(monkeypatch):
    is_usable.cache_clear()
    mark = PackedQueries.mark_reaching
    with monkeypatch.context() as patch:
        patch.setattr(PackedQueries, "mark_reaching", lambda *a: mark(*a) * 0)
        assert not is_usable(64)
    is_usable.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(PackedQueries, "mark_reaching", lambda *a: mark(*a) * 0 + 1)
        assert not is_usable(64)
    is_usable.cache_clear()

    def fail(*args):
        raise RuntimeError("no such operator")

    with monkeypatch.context() as patch:
        patch.setattr(PackedQueries, "mark_reaching", fail)
        assert not is_usable(64)
    is_usable.cache_clear()
    assert is_usable(64)
    assert not is_usable(8193)


def test_an_operator_that_is_slow_is_not_used(monkeypatch):
    is_usable.cache_clear()
    seconds = iter([1.0, 0.01])
    monkeypatch.setattr(fused, "find_fastest_seconds", lambda product: next(seconds))
    assert not is_usable(64)
    is_usable.cache_clear()
