"""The cache of the decode batch against a plain list of rows."""

import random
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from tracelib.models.decode_cache import DecodeCache

NUM_LAYERS, NUM_HEADS, HEAD_SIZE = 2, 3, 4
SPARE = 16  # columns that are allocated beside those in use, and up to twice that many


@pytest.fixture(autouse=True)
def fresh_memory_is_no_number():
    """Have torch fill memory that is taken with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


class ListedRows:
    """The same, slowly: each row is, by layer, its keys and values `[2, H, tokens, E]`."""

    def __init__(self):
        self.rows = []

    def add(self, layers, rows, mask):
        self.rows += [[layer[:, row][:, :, mask[row].bool()] for layer in layers] for row in rows]

    def append(self, layers):
        for number, row in enumerate(self.rows):
            row[:] = [
                torch.cat([old, new[:, number]], 2) for old, new in zip(row, layers, strict=True)
            ]

    def keep(self, order):
        self.rows = [self.rows[i] for i in order]


def make_prompts(rng, num_rows, width, sides):
    """Return random layers `[2, B, H, T, E]`, their cache and a mask padded as `sides` say."""
    layers = [torch.randn(2, num_rows, NUM_HEADS, width, HEAD_SIZE) for _ in range(NUM_LAYERS)]
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    mask = torch.zeros(num_rows, width).long()
    for row in mask:
        length = rng.randint(1, width)
        if rng.choice(sides) == "left":
            row[width - length :] = 1
        else:
            row[:length] = 1
    return layers, cache, mask


def add_prompts(rng, cache, listed, num_rows, width=None, sides=("left", "right")):
    size = rng.randint(1, 5)
    layers, source, mask = make_prompts(rng, size, width or rng.randint(1, 30), sides)
    rows = rng.choices(range(size), k=num_rows)  # samples of a query are copies of a row
    cache.add_rows(source, torch.tensor(rows), mask)
    listed.add(layers, rows, mask)


def step(cache, listed):
    """Write one token of every row, and compare what attention would see."""
    layers = [torch.randn(2, len(listed.rows), NUM_HEADS, 1, HEAD_SIZE) for _ in range(NUM_LAYERS)]
    listed.append(layers)
    seen = [cache.update(keys, values, number) for number, (keys, values) in enumerate(layers)]
    mask = cache.attention_mask
    num_columns, num_before = cache.get_mask_sizes(1, 0)
    assert num_before == 0
    assert mask.shape == (len(listed.rows), num_columns)
    assert seen[0][0].shape[2] == num_columns
    # causal attention sees all up to the last column, wherever the ring is written
    assert cache.get_seq_length() == num_columns - 1
    assert mask[:, cache.next].all()
    # what is not a token is a number all the same: it weighs nothing, but is multiplied
    assert all(tensor.isfinite().all() for layer in seen for tensor in layer)
    # rows that follow each other without a gap are faster to attend to
    assert all(tensor.is_contiguous() for layer in seen for tensor in layer)
    for number, row in enumerate(listed.rows):
        for expected, (keys, values) in zip(row, seen, strict=True):
            found = torch.stack([keys[number], values[number]])
            columns = list_columns(cache, expected.shape[2] - 1)
            assert torch.equal(found[:, :, columns], expected)
    cache.advance()


def list_columns(cache, num_before):
    """Return the columns of a row's last tokens and of the next one."""
    return (cache.next - torch.arange(num_before, -1, -1)) % cache.num_columns


def drop(cache, listed, goes):
    order = cache.drop_rows(torch.tensor(goes)).tolist()
    assert sorted(order) == [i for i, gone in enumerate(goes) if not gone]
    listed.keep(order)


def check(cache, listed):
    """Compare what is stored, and that nothing is stored that is not needed."""
    lengths = [row[0].shape[2] for row in listed.rows]
    assert cache.num_active == len(lengths)
    mask = cache.attention_mask
    assert mask.sum(-1).tolist() == [length + 1 for length in lengths]  # the next token, too
    assert max(lengths, default=0) < cache.num_columns
    for number, row in enumerate(listed.rows):
        columns = list_columns(cache, lengths[number])
        assert mask[number, columns].all()  # all rows end at the same column
        for layer, expected in zip(cache.layers, row, strict=True):
            found = torch.stack([layer.keys[number], layer.values[number]])
            assert torch.equal(found[:, :, columns[:-1]], expected)


@pytest.mark.parametrize("sides", [("left",), ("right",), ("left", "right")])
@pytest.mark.parametrize("num_slots", [1, 2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_events_keeps_every_row(seed, num_slots, sides):
    rng = random.Random(f"{seed} {num_slots} {sides}")
    cache, listed = DecodeCache(num_slots), ListedRows()
    for _ in range(150):
        active = len(listed.rows)
        event = rng.choices(("add", "drop", "step"), (2, 1, 5))[0]
        if active < num_slots and (event == "add" or not active):
            add_prompts(rng, cache, listed, rng.randint(1, num_slots - active), sides=sides)
        elif event == "drop":
            drop(cache, listed, [rng.random() < 0.4 for _ in range(active)])
        else:
            step(cache, listed)
        check(cache, listed)
        keys = cache.layers[0].keys
        assert keys.shape[0] == num_slots
        assert keys.shape[2] == cache.num_columns
        if event != "drop" and listed.rows:
            longest = max(row[0].shape[2] for row in listed.rows)
            assert cache.num_columns <= longest + 2 * SPARE


def fill(num_slots, num_rows, width):
    """Return a cache and its list with some rows of a width, and a step behind them."""
    rng, cache, listed = random.Random(0), DecodeCache(num_slots), ListedRows()
    add_prompts(rng, cache, listed, num_rows, width)
    step(cache, listed)
    return rng, cache, listed


@pytest.mark.parametrize(("num_rows", "width"), [(1, 60), (4, 60)])
def test_active_rows_keep_their_coming_column_when_the_cache_grows(num_rows, width):
    """The growth takes place between the steps, when the next column is already counted."""
    rng, cache, listed = fill(8, 2, 5)
    before = cache.layers[0].keys.shape
    add_prompts(rng, cache, listed, num_rows, width)
    assert cache.layers[0].keys.shape != before
    assert cache.attention_mask[:, cache.next].tolist() == [1] * (2 + num_rows)
    step(cache, listed)
    check(cache, listed)


def test_a_ring_that_is_long_enough_does_not_move():
    rng, cache, listed = fill(2, 1, 5)
    places, columns = {cache.layers[0].keys.data_ptr()}, []
    for number in range(120):
        step(cache, listed)
        check(cache, listed)
        if number % 6 == 0:  # one row always leaves, so that few columns are in use
            add_prompts(rng, cache, listed, 1, 5)
            drop(cache, listed, [True, False])
        columns.append(cache.next)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 1
    assert sum(a > b for a, b in pairwise(columns)) > 1  # and the ring went round


def test_a_long_row_leaves_no_long_ring():
    rng, cache, listed = fill(2, 1, 200)
    assert cache.num_columns > 6 + 2 * SPARE
    add_prompts(rng, cache, listed, 1, 5)
    drop(cache, listed, [True, False])
    step(cache, listed)
    check(cache, listed)
    assert cache.num_columns <= 6 + 2 * SPARE


def test_holes_are_filled_from_behind():
    _, cache, listed = fill(6, 6, 4)
    goes = [True, False, True, False, True, False]
    order = cache.drop_rows(torch.tensor(goes)).tolist()
    assert order[1] == 1  # who can stay where it is does
    assert sorted(order) == [1, 3, 5]
    listed.keep(order)
    check(cache, listed)
    step(cache, listed)


def test_all_rows_may_leave_and_others_come():
    rng, cache, listed = fill(3, 3, 9)
    drop(cache, listed, [True, True, True])
    assert len(cache.attention_mask) == 0
    add_prompts(rng, cache, listed, 2, 20)
    check(cache, listed)
    step(cache, listed)
    drop(cache, listed, [False, False])
    check(cache, listed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keys_and_values_keep_their_type(dtype):
    source = DynamicCache()
    source.update(torch.ones(1, 1, 2, 4, dtype=dtype), torch.ones(1, 1, 2, 4, dtype=dtype), 0)
    cache = DecodeCache(1)
    cache.add_rows(source, torch.tensor([0]), torch.ones(1, 2).long())
    new = torch.ones(1, 1, 1, 4, dtype=dtype)
    keys, values = cache.update(new, new, 0)
    assert keys.dtype == values.dtype == dtype
    assert keys.shape == values.shape == (1, 1, 2 + SPARE, 4)


def test_memory_is_kept_for_the_next_batch():
    """Of any length, in either mode of torch; the second time round, nothing is taken."""
    cache, places = DecodeCache(4), []
    for _ in range(6):
        rng, seen = random.Random(0), set()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                cache.clear()
                assert len(cache.attention_mask) == 0
                listed = ListedRows()
                for width in (5, 60, 5, 90):
                    add_prompts(rng, cache, listed, 1, width)
                    step(cache, listed)
                    check(cache, listed)
                    layers = cache.layers
                    kept = [t for layer in layers for t in (layer.keys, layer.values)]
                    seen |= {tensor.untyped_storage().data_ptr() for tensor in kept}
        places.append(seen)
    assert places[-1] == places[-2]
    assert len(places[-1]) == 2 * NUM_LAYERS + 1  # and one to move into


def test_a_batch_of_another_type_takes_memory_of_its_own():
    cache = DecodeCache(2)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        cache.clear()
        rows = torch.arange(24.0).view(1, 1, 6, 4).to(dtype)
        source = DynamicCache()
        source.update(rows, -rows, 0)
        cache.add_rows(source, torch.tensor([0, 0]), torch.ones(1, 6).long())
        new = torch.ones(2, 1, 1, 4, dtype=dtype)
        keys, values = cache.update(new, new, 0)
        assert keys.dtype == dtype
        columns = list_columns(cache, 6)[:-1]
        assert torch.equal(keys[1, :, columns], rows[0])
        assert torch.equal(values[1, :, columns], -rows[0])
