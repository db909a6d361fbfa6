import pytest

from tracelib.construction.teachers.price import Price, Spending


def test_cost_runs_with_the_answers():
    spending = Spending(Price(0.5, 2.0))
    assert spending.cost == 0
    spending.add(1000, 100)
    spending.add(3000, 0)
    assert (spending.num_answers, spending.prompt_tokens, spending.completion_tokens) == (
        2,
        4000,
        100,
    )
    assert spending.cost == pytest.approx((4000 * 0.5 + 100 * 2.0) / 1e6)


def test_negative_price_is_named():
    with pytest.raises(ValueError, match="per_million_completion_tokens is -1"):
        Price(1.0, -1)
