import math
import random
import statistics

from tracelib.construction.report.tally import Bin, Tally, choose_bins


def tally_of(values):
    tally = Tally()
    for value in values:
        tally.add(value)
    return tally


def test_statistics_are_those_of_the_values():
    values = [random.randrange(300) for _ in range(999)]
    tally = tally_of(values)
    assert tally.num_values == 999
    assert math.isclose(tally.mean, statistics.mean(values))
    assert tally.sum_powers() == (sum(values), sum(v * v for v in values))
    assert tally.find_quantile(0.5) == statistics.median(values)
    assert tally.find_quantile(0.95) == sorted(values)[math.ceil(0.95 * 999) - 1]
    assert tally.find_quantile(1) == max(values)
    assert tally_of([1, 2]).find_quantile(0.5) == 1
    assert tally.range == (min(values), max(values))
    counts = tally.to_json()["counts"]
    assert counts == {str(v): values.count(v) for v in sorted(set(values))}


def test_none_is_no_error():
    tally = Tally()
    assert tally.find_quantile(0.5) == 0
    assert tally.to_json()["mean"] is None
    assert choose_bins([tally]) == ([], 1)
    assert tally.split_bins([], 1) == []


def test_bins_are_round_and_hold_every_value():
    for _ in range(200):
        values = [random.randrange(10 ** random.randrange(1, 5)) for _ in range(20)]
        tally = tally_of(values)
        starts, width = choose_bins([tally, tally_of([])], max_bins=12)
        bins = tally.split_bins(starts, width)
        assert len(bins) <= 12
        assert str(width).rstrip("0") in ("1", "2", "5")
        assert sum(bar.num_values for bar in bins) == 20
        assert all(
            bar.num_values == sum(bar.low <= value <= bar.high for value in values) for bar in bins
        )


def test_bins_are_no_wider_than_needed():
    assert choose_bins([tally_of([16]), tally_of([31])], max_bins=16) == (list(range(16, 32)), 1)
    starts, width = choose_bins([tally_of([15, 31])], max_bins=16)
    assert (starts[0], starts[-1], width) == (14, 30, 2)
    assert tally_of([15, 31]).split_bins([14], 2) == [Bin(14, 15, 1)]
