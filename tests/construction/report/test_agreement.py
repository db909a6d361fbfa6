import random

import pytest

from tracelib.construction.report.agreement import Agreement, Agreements


def kappa_of(pairs):
    """The definition, from the verdicts themselves."""
    total = len(pairs)
    observed = sum(a == b for a, b in pairs) / total
    expected = sum(
        (sum(a == v for a, _ in pairs) / total) * (sum(b == v for _, b in pairs) / total)
        for v in (0, 1)
    )
    return (observed - expected) / (1 - expected)


def test_kappa_is_its_definition():
    for _ in range(50):
        pairs = [(random.randrange(2), random.randrange(2)) for _ in range(37)]
        agreements = Agreements(("rule", "judge"))
        for first, second in pairs:
            agreements.add({"rule": first, "judge": second})
        (pair,) = agreements.pairs
        assert pair.kappa == pytest.approx(kappa_of(pairs))
        assert pair.share == pytest.approx(sum(a == b for a, b in pairs) / 37)
        assert pair.num_queries == 37


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [((5, 0, 0, 5), 1.0), ((0, 5, 5, 0), -1.0), ((4, 4, 4, 4), 0.0), ((0, 5, 0, 5), 0.0)],
)
def test_kappa_of_known_tables(counts, kappa):
    assert Agreement("a", "b", *counts).kappa == kappa


def test_kappa_is_not_defined_where_chance_explains_all():
    assert Agreement("a", "b", 0, 0, 0, 9).kappa is None
    assert Agreement("a", "b", 0, 0, 0, 9).share == 1.0
    assert Agreement("a", "b").to_json()["agreement"] is None


def test_only_queries_that_both_have_judged_count():
    agreements = Agreements(("rule", "judge", "utility"))
    agreements.add({"rule": 1, "utility": 0})
    agreements.add({"rule": 1, "judge": 1, "utility": 1})
    found = {(pair.first, pair.second): pair for pair in agreements.pairs}
    assert {names: pair.num_queries for names, pair in found.items()} == {
        ("rule", "judge"): 1,
        ("rule", "utility"): 2,
        ("judge", "utility"): 1,
    }
    assert found["rule", "utility"].num_first_hard == 1
    assert found["rule", "utility"].num_second_hard == 0
