import pytest

from tracelib.construction.teachers.price import Price


def test_negative_price_is_named():
    with pytest.raises(ValueError, match="per_million_completion_tokens is -1"):
        Price(1.0, -1)
