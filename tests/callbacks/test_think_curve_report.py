import json
import math

import pytest
import torch

from tests.reference.gate_curves import trace_slowly
from tracelib.callbacks.think_curve_report import ThinkCurves, trace_gates, write_think_curves
from tracelib.retrieval.per_query import PerQuery

SIZE = 30
COLUMNS = ["a_task0"] * 18 + ["fashioniq_task7"] * 12  # reported at 5 and at 10


def make_queries(ranks, probability, emb_is_first, thinks):
    return PerQuery(
        [f"0:{i}" for i in range(SIZE)],
        COLUMNS,
        torch.zeros(SIZE),
        torch.full((SIZE,), -1),
        torch.ones(SIZE),
        ranks,
        torch.full((SIZE,), thinks),
        torch.ones(SIZE),
        probability,
        emb_is_first,
    )


def make_sides(has_router=True):
    probability = torch.rand(SIZE) if has_router else torch.full((SIZE,), torch.nan)
    probability[:3] = probability[0].clone()
    emb_is_first = torch.rand(SIZE) < 0.5
    sides = [
        make_queries(
            {pool: torch.randint(0, 13, (SIZE,)) for pool in ("local", "union")},
            probability,
            emb_is_first,
            thinks,
        )
        for thinks in (False, True)
    ]
    return *sides, torch.tensor([0.3] * 18 + [0.7] * 12)


def test_curves_are_those_of_a_slow_recomputation():
    direct, thought, prior = make_sides()
    found = trace_gates(direct, thought, prior)
    for pool in ("local", "union"):
        expected = trace_slowly(direct, thought, pool, prior.tolist())
        assert set(found.pools[pool]) == set(expected)
        for gate, (scores, fraction) in expected.items():
            curve = found.pools[pool][gate]
            assert curve.scores == pytest.approx(scores), gate
            assert curve.area_fraction == pytest.approx(fraction), gate
    assert found.pools["local"]["oracle"].area_fraction == 1
    assert found.pools["local"]["random"].area_fraction == pytest.approx(0)
    assert found.pools["local"]["head"] != found.pools["union"]["head"]


def test_without_a_router_there_is_no_head():
    assert set(trace_gates(*make_sides(has_router=False)).pools["local"]) == {
        "first_token",
        "task_prior",
        "random",
        "oracle",
    }


def test_speed_is_mixed_from_the_two_measured():
    found = trace_gates(*make_sides(), 0.1, 0.3)
    assert found.queries_per_second[0] == pytest.approx(10)
    assert found.queries_per_second[5] == pytest.approx(5)
    assert found.queries_per_second[10] == pytest.approx(1 / 0.3)
    for times in ((None, 0.3), (0.1, None)):
        assert trace_gates(*make_sides(), *times).queries_per_second is None


def test_what_is_written_can_be_read(tmp_path):
    direct, _, prior = make_sides()
    curves = trace_gates(direct, direct, prior, 0.1, 0.3)  # no query gains: nothing to order
    assert math.isnan(curves.pools["local"]["head"].area_fraction)
    write_think_curves(tmp_path / "a" / "think_curve.json", curves, {"split": "val"})
    content = json.loads((tmp_path / "a" / "think_curve.json").read_text())
    assert content["provenance"] == {"split": "val"}
    assert content["think_rates"] == [i / 10 for i in range(11)]
    head = content["pools"]["union"]["head"]
    assert head["area_fraction"] is None
    assert head["recall"] == [pytest.approx(head["area"])] * 11


def test_curves_know_nothing_of_times_that_were_not_measured():
    assert ThinkCurves({}, None, None).to_json()["queries_per_second"] is None
