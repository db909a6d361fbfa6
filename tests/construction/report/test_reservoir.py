from collections import Counter

from tracelib.construction.report.reservoir import Reservoir


def sample(num_items, size, seed):
    reservoir = Reservoir(size, seed)
    for item in range(num_items):
        reservoir.offer(item)
    return reservoir.items


def test_every_item_has_the_same_chance():
    counts = Counter(item for seed in range(4000) for item in sample(20, 5, f"{seed}"))
    assert sum(counts.values()) == 20_000
    # 1000 each; a standard deviation is sqrt(4000 * 0.25 * 0.75) = 27
    assert all(abs(counts[item] - 1000) < 5 * 27 for item in range(20))


def test_a_sample_is_of_its_seed_and_holds_nothing_twice():
    first = sample(1000, 10, "kept cirr")
    assert first == sample(1000, 10, "kept cirr")
    assert first != sample(1000, 10, "kept nights")
    assert len(set(first)) == 10


def test_a_short_stream_is_kept_whole():
    assert sample(3, 10, "") == [0, 1, 2]
    assert sample(3, 0, "") == []
