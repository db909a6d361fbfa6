import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.reference.search import round_unit_vectors, search, search_to_the_bit
from tracelib.retrieval.coarse import COARSE_TYPES
from tracelib.retrieval.cosines import merge_top_k
from tracelib.retrieval.guess import guess_kth_best
from tracelib.retrieval.search import TopKSearch, estimate_search_bytes
from tracelib.retrieval.tensor_search import search_top_k

EVERY_FILTER = [None, (), *((kind,) for kind in COARSE_TYPES), (torch.int8, torch.bfloat16)]


def matmul_scores(queries, candidates, chunk_size):
    """Cosines the plain way, in float32, chunk by chunk."""
    units = functional.normalize(queries)
    return torch.cat([units @ functional.normalize(c).T for c in candidates.split(chunk_size)], 1)


def test_worked_example():
    queries = torch.tensor([[4.0, 0, 3], [3, 4, 0], [1, 1, 0]])
    pool = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 10], [0.6, 0.8, 0]])
    scores, positions = search_top_k(queries, pool, k=4)
    assert positions.tolist() == [[0, 2, 3, 1], [3, 1, 0, 2], [3, 0, 1, 2]]
    expected = [[0.8, 0.6, 0.48, 0], [1, 0.8, 0.6, 0], [0.98995, 0.70711, 0.70711, 0]]
    assert torch.allclose(scores, torch.tensor(expected), atol=1e-5)
    assert scores.dtype == torch.float32
    assert positions.dtype == torch.int64
    # the negative control: without normalising the pool the long third row comes first
    assert (queries @ pool.T).argmax(dim=1)[0].item() == 2


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 16384])
def test_agrees_with_a_full_sort(chunk_size):
    queries, candidates = torch.randn(9, 24), torch.randn(200, 24) * 3
    scores, positions = search_top_k(queries, candidates, 10, chunk_size)
    for row, (hits, found) in enumerate(
        zip(search(queries, candidates, 10), scores.tolist(), strict=True)
    ):
        assert positions[row].tolist() == [i for _, i in hits]
        assert found == pytest.approx([score for score, _ in hits], abs=2e-7)


@pytest.mark.parametrize("chunk_size", [1, 3, 64, 1000, 16384])
def test_duplicates_come_in_pool_order_whatever_the_chunk(chunk_size):
    distinct = torch.randn(40, 96)
    copies = torch.randint(40, (1000,))
    queries = torch.randn(30, 96)
    scores, positions = search_top_k(queries, distinct[copies], 300, chunk_size)
    assert all(len(set(row)) == 300 for row in positions.tolist())
    same = copies[positions[:, 1:]] == copies[positions[:, :-1]]
    assert same.sum() > 5000
    assert (scores[:, 1:] == scores[:, :-1])[same].all()
    assert (positions[:, 1:] > positions[:, :-1])[same].all()
    # each copy is found before any candidate of a lower score: groups are never torn apart
    assert (same.sum(dim=1) >= 300 - 40).all()


@pytest.mark.parametrize("chunk_size", [1, 2, 17, 333, 999])
def test_result_is_bit_identical_for_every_chunk_and_batch(chunk_size):
    queries, candidates = torch.randn(25, 130), torch.randn(1000, 130)
    scores, positions = search_top_k(queries, candidates, 50)
    chunked_scores, chunked_positions = search_top_k(queries, candidates, 50, chunk_size)
    assert torch.equal(chunked_scores, scores)
    assert torch.equal(chunked_positions, positions)
    alone_scores, alone_positions = search_top_k(queries[7:8], candidates, 50, chunk_size)
    assert torch.equal(alone_scores, scores[7:8])
    assert torch.equal(alone_positions, positions[7:8])


def test_plain_matmul_does_not_have_that_property():
    queries, candidates = torch.randn(25, 130), torch.randn(1000, 130)
    whole = matmul_scores(queries, candidates, 1000)
    assert any(not torch.equal(matmul_scores(queries, candidates, n), whole) for n in (1, 2, 17))


def test_ties_of_different_rows_keep_pool_order():
    pool = torch.eye(64).flip(0)
    scores, positions = search_top_k(torch.ones(1, 64), pool, 64, chunk_size=5)
    assert positions.tolist() == [list(range(64))]
    assert scores.unique().tolist() == [0.125]


def test_order_follows_the_returned_scores():
    queries, candidates = torch.randint(-9, 0, (5, 3)), torch.randint(1, 9, (5000, 3))
    scores, positions = search_top_k(queries, candidates, 5000)
    falls = scores[:, 1:] < scores[:, :-1]
    ties = scores[:, 1:] == scores[:, :-1]
    assert ties.any()
    assert (falls | (ties & (positions[:, 1:] > positions[:, :-1]))).all()
    assert scores.abs().max() <= 1


def test_more_queries_than_one_block():
    queries, candidates = torch.randn(2500, 8), torch.randn(60, 8)
    scores, positions = search_top_k(queries, candidates, 3, chunk_size=16)
    rows = [0, 1023, 1024, 2499]
    expected = search(queries[rows], candidates, 3)
    assert positions[rows].tolist() == [[i for _, i in hits] for hits in expected]
    assert scores.shape == (2500, 3)


def test_low_precision_embeddings_are_scored_in_full():
    queries, candidates = torch.randn(4, 32).bfloat16(), torch.randn(80, 32).bfloat16()
    _, positions = search_top_k(queries, candidates, 5)
    expected = search(queries.float(), candidates.float(), 5)
    assert positions.tolist() == [[i for _, i in hits] for hits in expected]


def test_extreme_lengths_do_not_matter():
    queries, candidates = torch.randn(3, 16), torch.randn(50, 16)
    scale = torch.tensor([1e-38, 1.0, 1e37])
    expected = search_top_k(queries.double(), candidates, 10)[1]
    scaled = candidates.double() * scale[torch.arange(50) % 3, None].double()
    assert torch.equal(search_top_k(queries, scaled.float(), 10)[1], expected)


def test_single_candidate_is_no_collapse():
    assert search_top_k(torch.ones(2, 4), torch.ones(1, 4), 1)[1].tolist() == [[0], [0]]


def test_gradients_are_not_recorded():
    scores, _ = search_top_k(torch.randn(2, 4, requires_grad=True), torch.randn(3, 4), 1)
    assert not scores.requires_grad


@pytest.mark.parametrize(("k", "message"), [(0, "k is 0; allowed 1 .. 5"), (6, "k is 6; allowed")])
def test_depth_is_checked(k, message):
    with pytest.raises(ValueError, match=message):
        search_top_k(torch.randn(2, 4), torch.randn(5, 4), k)


@pytest.mark.parametrize(
    ("query_shape", "candidate_shape", "message"),
    [
        ((2, 4), (5, 3), r"queries \(2, 4\), candidates \(5, 3\); expected \[Q, D\]"),
        ((4,), (5, 4), r"queries \(4,\)"),
        ((2, 4), (0, 4), r"candidates \(0, 4\); the pool needs"),
        ((2, 0), (5, 0), "D >= 1"),
    ],
)
def test_shapes_are_checked(query_shape, candidate_shape, message):
    with pytest.raises(ValueError, match=message):
        search_top_k(torch.randn(query_shape), torch.randn(candidate_shape), 1)


def test_chunk_size_is_checked():
    with pytest.raises(ValueError, match="chunk_size is 0"):
        search_top_k(torch.randn(2, 4), torch.randn(5, 4), 1, chunk_size=0)


@pytest.mark.parametrize("side", ["query", "candidate"])
@pytest.mark.parametrize(
    ("value", "norm"), [(float("nan"), "nan"), (float("inf"), "inf"), (0.0, "0.0")]
)
def test_first_bad_row_is_named(side, value, norm):
    rows = {"query": torch.randn(20, 4), "candidate": torch.randn(20, 4)}
    rows[side][13] = value
    rows[side][17] = value
    with pytest.raises(ValueError, match=f"{side} row 13 has norm {norm};"):
        search_top_k(rows["query"], rows["candidate"], 1, chunk_size=6)


@pytest.mark.parametrize("lengths", [torch.ones(9, 1), torch.arange(1.0, 10).reshape(9, 1)])
def test_constant_pool_is_refused(lengths):
    pool = torch.randn(1, 4).sign() * lengths
    with pytest.raises(ValueError, match="all 9 candidate embeddings point the same way"):
        search_top_k(torch.randn(2, 4), pool, 1, chunk_size=4)
    pool[8, 0] *= -1
    assert search_top_k(torch.randn(2, 4), pool, 1, chunk_size=4)[1].shape == (2, 1)


def search_in_chunks(queries, candidates, k, chunk_size, coarse_types=None, cls=TopKSearch):
    """Search chunk by chunk, in shuffled order."""
    found = cls(queries, k, coarse_types)
    starts = torch.arange(0, len(candidates), chunk_size)
    for start in starts[torch.randperm(len(starts))].tolist():
        found.add(candidates[start : start + chunk_size], start)
    return found


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def draw_clusters(num_rows, num_dimensions, num_clusters=40):
    """Rows around centres, all off to one side, as trained embeddings are."""
    centres = torch.randn(num_clusters, num_dimensions) + 0.5
    members = centres[torch.randint(num_clusters, (num_rows,))]
    return (members + torch.randn(num_rows, num_dimensions)) * torch.rand(num_rows, 1).add(0.1)


def draw_near_ties(num_rows, num_dimensions):
    """Rows within 1e-6 of a few directions, and many of them equal."""
    rows = torch.randn(5, num_dimensions).repeat(num_rows // 5, 1)
    rows += torch.randint(3, (len(rows), 1)) * 1e-6 * torch.randn(len(rows), num_dimensions)
    return rows[torch.randperm(len(rows))]


def draw_spiky(num_rows, num_dimensions):
    """Rows of a few huge coordinates, which int8 rounds coarsely."""
    return torch.randn(num_rows, num_dimensions) ** 5


POOLS = {
    "noise": torch.randn,
    "clusters": draw_clusters,
    "near ties": draw_near_ties,
    "spiky": draw_spiky,
    "negative": lambda *shape: -torch.rand(*shape),
    "integers": lambda *shape: torch.randint(1, 4, shape).float(),
}


@pytest.mark.parametrize("coarse_types", EVERY_FILTER, ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_equals_scoring_everything_to_the_bit(pool, coarse_types):
    candidates, queries = POOLS[pool](5000, 48), POOLS[pool](30, 48).abs()
    for kind in (torch.float16, torch.bfloat16, torch.float32):
        rows, asked = candidates.to(kind), queries.to(kind)
        expected = search_to_the_bit(asked, rows, 20)
        found = search_in_chunks(asked, rows, 20, 5000, coarse_types)
        assert_same(found.result(), expected)
        assert_same(search_in_chunks(asked, rows, 20, 700, coarse_types).result(), expected)


@pytest.mark.parametrize("chunk_size", [1, 7, 100, 10000])
@pytest.mark.parametrize("order", ["rising", "falling", "equal", "sorted by cluster"])
def test_worst_orders_of_the_pool(order, chunk_size):
    queries = torch.randn(20, 32)
    mix = torch.linspace(0, 1, 3000)[:, None]
    toward = functional.normalize(queries[:1]) * mix + functional.normalize(torch.randn(1, 32)) * (
        1 - mix
    )
    candidates = {
        "rising": toward,
        "falling": toward.flip(0),
        "equal": torch.cat([torch.ones(2999, 32), -torch.ones(1, 32)]),
        "sorted by cluster": torch.randn(10, 32).repeat_interleave(300, 0)
        + 0.3 * torch.randn(3000, 32),
    }[order]
    expected = search_to_the_bit(queries, candidates, 25)
    assert_same(search_in_chunks(queries, candidates, 25, chunk_size).result(), expected)


def test_random_searches():
    for _ in range(60):
        num_queries, num_rows, num_dimensions, k, chunk_size = (
            int(torch.randint(1, most, ())) for most in (40, 2500, 40, 60, 2600)
        )
        draw = list(POOLS.values())[int(torch.randint(len(POOLS), ()))]
        candidates = draw(max(5, num_rows), num_dimensions + 1)
        candidates = candidates * 10.0 ** torch.randint(-9, 9, (len(candidates), 1))
        queries = draw(max(5, num_queries), num_dimensions + 1)
        kinds = EVERY_FILTER[int(torch.randint(len(EVERY_FILTER), ()))]
        expected = search_to_the_bit(queries, candidates, k)
        assert_same(search_in_chunks(queries, candidates, k, chunk_size, kinds).result(), expected)


@pytest.mark.parametrize("pool", POOLS)
def test_pairs_wait_and_are_scored_in_small_lots(pool, monkeypatch):
    # what a search of millions goes through, at the size of a test
    for name, value in (
        ("_TILE_ROWS", 96),
        ("_QUERY_BLOCK", 16),
        ("_FEW_PAIRS", 40),
        ("_MANY_PAIRS", 400),
        ("_PAIR_NUMBERS", 100),
        ("_DENSE_SHARE", 1.0),
    ):
        monkeypatch.setattr(f"tracelib.retrieval.search.{name}", value)
    queries, candidates = POOLS[pool](50, 12), POOLS[pool](4000, 12).half()
    expected = search_to_the_bit(queries, candidates, 15)
    for chunk_size in (4000, 500):
        assert_same(search_in_chunks(queries, candidates, 15, chunk_size).result(), expected)


class Counting(TopKSearch):
    """Counts the rows scored without a sieve."""

    num_scored = 0

    def _score_all(self, block, tile):
        self.num_scored += len(tile.steps)
        super()._score_all(block, tile)


def test_filter_drops_nearly_all():
    queries, candidates = torch.randn(100, 64), torch.randn(30000, 64)
    types = (torch.int8, torch.bfloat16)
    found = search_in_chunks(queries, candidates, 10, 30000, types, Counting)
    assert found.num_scored < 5000


@pytest.mark.parametrize(
    ("num_dimensions", "num_leading"), [(64, 0), (85, 0), (86, 64), (768, 576), (1024, 768)]
)
def test_leading_coordinates_are_a_multiple_of_64(num_dimensions, num_leading):
    assert TopKSearch(torch.ones(1, num_dimensions), 1)._num_leading == num_leading


STRIDE = 41  # of 4,000 rows


@pytest.fixture
def small_tiles(monkeypatch):
    """Let a chunk of 1,536 rows be large enough for a guess, from 96 runs of 8 rows."""
    monkeypatch.setattr("tracelib.retrieval.search._TILE_ROWS", 96)
    monkeypatch.setattr("tracelib.retrieval.search._QUERY_BLOCK", 16)
    for name, value in (("_NUM_RUNS", 96), ("_RUN_ROWS", 8), ("_TILE_RUNS", 12)):
        monkeypatch.setattr(f"tracelib.retrieval.guess.{name}", value)


class Guessless(Counting):
    """Starts without a guess."""

    def _find_least_best(self, tile):
        return None


class Trusting(Counting):
    """Takes any guess for granted."""

    def _search_again(self, rows, first_place):
        pass


class Doubting(Counting):
    """Counts the queries that search again."""

    num_again = 0

    def _take_queries(self, steps, k):
        Doubting.num_again += len(steps) if hasattr(self, "_best") else 0
        super()._take_queries(steps, k)


def draw_hits(num_rows, queries, where):
    """Rows of noise; those in `where`, a slice, lie around the queries."""
    rows = torch.randn(num_rows, queries.shape[1])
    num_hits = len(rows[where])
    rows[where] = queries[torch.randint(len(queries), (num_hits,))] + 0.5 * rows[where]
    return rows


def draw_placed(pool, queries):
    """4,000 rows, of which 96 runs of 8 are looked at first: rows 0, 41 ... and on."""
    rows = draw_hits(4000, queries, slice(0, 0))
    if pool == "late":
        return draw_hits(4000, queries, slice(3700, None))
    if pool == "in one tile":
        return draw_hits(4000, queries, slice(1500, 1596))
    if pool == "in the sample":
        for start in range(0, 96 * STRIDE, STRIDE):
            rows[start : start + 8] = draw_hits(8, queries, slice(0, None))
    if pool == "everywhere":
        return draw_hits(4000, queries, slice(0, None))
    if pool == "equal":
        rows[:] = queries[0]
        rows[0] *= -1
    if pool == "rising":
        rows = rows[(functional.normalize(rows) @ queries[0]).argsort()]
    if pool == "copies":
        rows = draw_near_ties(4000, queries.shape[1])
    if pool == "lengths":
        rows *= 10.0 ** torch.randint(-9, 9, (4000, 1))
    return rows


PLACED = (
    "late",
    "in one tile",
    "in the sample",
    "everywhere",
    "equal",
    "rising",
    "copies",
    "lengths",
    "noise",
)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("coarse_types", EVERY_FILTER, ids=str)
@pytest.mark.parametrize("pool", PLACED)
def test_a_guess_changes_nothing(pool, coarse_types):
    queries = torch.randn(40, 100)
    rows = draw_placed(pool, queries)
    expected = search_to_the_bit(queries, rows, 20)
    for cls in (TopKSearch, Guessless):
        found = search_in_chunks(queries, rows, 20, 4000, coarse_types, cls)
        assert_same(found.result(), expected)
        found = search_in_chunks(queries, rows, 20, 1600, coarse_types, cls)
        assert_same(found.result(), expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("pool", PLACED)
def test_pairs_wait_beside_a_guess(pool, monkeypatch):
    for name, value in (("_FEW_PAIRS", 40), ("_MANY_PAIRS", 200), ("_DENSE_SHARE", 1.0)):
        monkeypatch.setattr(f"tracelib.retrieval.search.{name}", value)
    queries = torch.randn(40, 100)
    rows = draw_placed(pool, queries)
    expected = search_to_the_bit(queries, rows, 20)
    found = Trusting(queries, 20, (torch.int8, torch.float32))
    found.add(rows, 0)
    # the guess holds out until k hits are found: no tile is scored whole to begin with
    assert found.num_scored == 0
    found = TopKSearch(queries, 20, (torch.int8, torch.float32))
    found.add(rows, 0)
    assert_same(found.result(), expected)
    # the negative control
    guessless = Guessless(queries, 20, (torch.int8, torch.float32))
    guessless.add(rows, 0)
    assert guessless.num_scored > 0


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kind", COARSE_TYPES, ids=str)
@pytest.mark.parametrize("pool", ["everywhere", "noise", "lengths"])
def test_a_guess_from_a_fair_sample_holds_and_is_of_use(pool, kind):
    queries = torch.randn(40, 100)
    rows = draw_placed(pool, queries)
    found = TopKSearch(queries, 20, (kind,))
    guess = guess_kth_best(rows, 20, found._find_least_best)
    assert guess.shape == (40, 1)
    cosines = functional.normalize(queries.double()) @ functional.normalize(rows.double()).T
    num_higher = (cosines >= guess).sum(dim=1)
    assert (num_higher >= 20).all()
    # a sample of a fifth, 14th best: a few times 20
    assert num_higher.float().mean() < 200


def test_all_pairs_that_wait_may_turn_out_too_low():
    # the second tile makes many pairs wait, and the third, scored whole, has better ones
    queries = torch.zeros(1024, 64)
    queries[:, 0] = 1
    cosines = torch.cat([torch.zeros(2048), torch.full((40,), 0.3), torch.full((2008,), -0.1)])
    cosines = torch.cat([cosines, torch.full((2048,), 0.9)])
    rows = torch.zeros(6144, 64)
    rows[:, 0], rows[:, 1] = cosines, (1 - cosines**2).sqrt()
    found = TopKSearch(queries, 3, (torch.float32,))
    found.add(rows, 0)
    assert found.result()[1].tolist() == [[4096, 4097, 4098]] * 1024


@pytest.mark.usefixtures("small_tiles")
def test_queries_misled_by_the_sample_search_again():
    queries = torch.randn(40, 100)
    rows = draw_placed("in the sample", queries)
    expected = search_to_the_bit(queries, rows, 20)
    Doubting.num_again = 0
    found = Doubting(queries, 20, (torch.int8, torch.float32))
    found.add(rows, 0)
    assert_same(found.result(), expected)
    assert 0 < Doubting.num_again <= 40
    more = torch.randn(100, 100)
    found.add(more, 4000)
    assert_same(found.result(), search_to_the_bit(queries, torch.cat([rows, more]), 20))
    # the negative control: some of their hits were dropped
    trusting = Trusting(queries, 20, (torch.int8, torch.float32))
    trusting.add(rows, 0)
    assert not torch.equal(trusting.result()[1], expected[1])


@pytest.mark.usefixtures("small_tiles")
def test_leading_coordinates_are_tried_beside_a_guess():
    queries = torch.randn(40, 100)
    found = TopKSearch(queries, 20, (torch.int8,))
    found.add(draw_placed("everywhere", queries), 0)
    assert all((torch.int8, 64) in block._coarse for block in found._blocks.values())


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("k", [1, 24, 25, 1600])
def test_a_guess_needs_groups(k):
    queries, rows = torch.randn(20, 100), torch.randn(1600, 100)
    found = TopKSearch(queries, k, (torch.int8,))
    guess = guess_kth_best(rows, k, found._find_least_best)
    assert (guess > -torch.inf).all() == (k <= 24)
    found.add(rows, 0)
    assert_same(found.result(), search_to_the_bit(queries, rows, k))


@pytest.mark.usefixtures("small_tiles")
def test_a_guess_is_made_for_a_large_first_chunk_only():
    queries, rows = torch.randn(20, 100), torch.randn(1600, 100)
    found = TopKSearch(queries, 5, (torch.int8,))
    assert guess_kth_best(rows[:1535], 5, found._find_least_best) is None
    assert guess_kth_best(rows[:1536], 5, found._find_least_best) is not None
    found.add(rows[:5], 0)
    found._find_least_best = None  # would be called
    found.add(rows[5:], 5)
    assert_same(found.result(), search_to_the_bit(queries, rows, 5))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("row", [0, 1500, 1595, 1596, 3999])
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_bad_row_of_a_large_chunk_is_named(bad, row):
    rows = torch.randn(4000, 8)
    rows[row] = bad
    with pytest.raises(ValueError, match=f"candidate row {row + 70000} has norm"):
        TopKSearch(torch.randn(3, 8), 2).add(rows, 70000)


@pytest.mark.usefixtures("small_tiles")
def test_no_queries():
    found = TopKSearch(torch.randn(0, 8), 5)
    found.add(torch.randn(4000, 8), 0)
    assert found.result()[1].shape == (0, 5)


@pytest.mark.parametrize("kind", COARSE_TYPES, ids=str)
def test_product_that_errs_is_not_used(kind, monkeypatch):
    # else int8 is multiplied elsewhere
    monkeypatch.setattr("tracelib.retrieval.tiles.is_usable", lambda num_dimensions: False)

    class Sloppy(TopKSearch):
        """Finds the opposite."""

        @staticmethod
        def multiply(queries, rows):
            return -TopKSearch.multiply(queries, rows)

    queries, candidates = torch.randn(40, 32), torch.randn(6000, 32)
    found = search_in_chunks(queries, candidates, 10, 6000, (kind,), Sloppy)
    assert found._coarse_types == []
    assert_same(found.result(), search_to_the_bit(queries, candidates, 10))
    # the negative control: the product is what the result would depend on
    trusting = Sloppy(queries, 10, (kind,))
    trusting._coarse_types = [kind]
    trusting.add(candidates, 0)
    assert not torch.equal(trusting.result()[1], found.result()[1])


@pytest.mark.parametrize("coarse_types", EVERY_FILTER, ids=str)
@pytest.mark.parametrize("num_dimensions", [1, 2])
def test_tiny_embeddings(num_dimensions, coarse_types):
    queries, candidates = torch.randn(5, num_dimensions), torch.randn(3001, num_dimensions)
    expected = search_to_the_bit(queries, candidates, 40)
    assert_same(search_in_chunks(queries, candidates, 40, 3001, coarse_types).result(), expected)


def test_fewer_seen_than_k():
    queries, candidates = torch.randn(6, 8), torch.randn(9, 8)
    found = TopKSearch(queries, 50)
    assert found.result()[0].shape == (6, 0)
    found.add(candidates[:4], 0)
    assert_same(found.result(), search_to_the_bit(queries, candidates[:4], 4))
    found.add(candidates[4:], 4)
    assert_same(found.result(), search_to_the_bit(queries, candidates, 9))


def test_places_may_be_far():
    queries, candidates = torch.randn(5, 8), torch.randn(2000, 8).repeat(2, 1)
    offset = 2**32 - 4000
    found = TopKSearch(queries, 30)
    found.add(candidates[2000:], offset + 2000)
    found.add(candidates[:2000], offset)
    scores, places = search_to_the_bit(queries, candidates, 30)
    assert_same(found.result(), (scores, places + offset))


def test_callers_tensors_are_left_alone():
    queries, candidates = torch.randn(5, 8), torch.randn(3000, 8)
    for kind in (torch.float32, torch.float64):
        asked, rows = queries.to(kind), candidates.to(kind)
        before = asked.clone(), rows.clone()
        search_in_chunks(asked, rows, 10, 3000)
        assert_same((asked, rows), before)


SPEC_QUERIES = torch.tensor([[4.0, 0, 3], [3, 4, 0], [1, 1, 0]])
SPEC_LOCAL = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]])
SPEC_UNION = torch.cat([SPEC_LOCAL, torch.tensor([[0.8, 0, 0.6]])])


def test_spec_rankings():
    scores, places = search_top_k(SPEC_QUERIES, SPEC_LOCAL, 4)
    assert places.tolist() == [[0, 2, 3, 1], [3, 1, 0, 2], [3, 0, 1, 2]]
    expected = [[0.8, 0.6, 0.48, 0], [1, 0.8, 0.6, 0], [0.990, 0.707, 0.707, 0]]
    assert torch.allclose(scores, torch.tensor(expected), atol=5e-4)
    scores, places = search_top_k(SPEC_QUERIES, SPEC_UNION, 5)
    assert places.tolist() == [[4, 0, 2, 3, 1], [3, 1, 0, 4, 2], [3, 0, 1, 4, 2]]
    expected = [[1, 0.8, 0.6, 0.48, 0], [1, 0.8, 0.6, 0.48, 0], [0.990, 0.707, 0.707, 0.566, 0]]
    assert torch.allclose(scores, torch.tensor(expected), atol=5e-4)


def test_spec_control_of_unnormalised_documents():
    pool = SPEC_LOCAL * torch.tensor([[1.0], [1], [10], [1]])
    assert_same(search_top_k(SPEC_QUERIES, pool, 4), search_top_k(SPEC_QUERIES, SPEC_LOCAL, 4))
    assert (SPEC_QUERIES @ pool.T).argmax(dim=1)[0].item() == 2


def test_merged_shares_equal_the_whole():
    queries, candidates = torch.randn(15, 12), torch.randn(40, 12)[torch.randint(40, (1000,))]
    whole = search_to_the_bit(queries, candidates, 30)
    for num_shares in (1, 2, 7, 100):
        parts = []
        for share in range(num_shares):
            found = TopKSearch(queries, 30)
            for start in range(share * 10, 1000, num_shares * 10):
                found.add(candidates[start : start + 10], start)
            parts.append(found.result())
        assert_same(merge_top_k(parts, 30), whole)
        assert_same(merge_top_k([merge_top_k(parts[:2], 30), *parts[2:]], 30), whole)


def test_shares_of_one_direction_are_no_collapse():
    queries, row = torch.randn(2, 4), torch.randn(1, 4)
    found = TopKSearch(queries, 3)
    assert found.common_direction is None
    found.add(row.expand(5, 4), 10)
    assert torch.equal(found.common_direction, round_unit_vectors(row)[0])
    assert found.result()[1].tolist() == [[10, 11, 12]] * 2
    with pytest.raises(ValueError, match="all 5 candidate embeddings point the same way"):
        search_top_k(queries, row.expand(5, 4), 3)
    found.add(-row, 3)
    assert found.common_direction is None
    assert found.result()[1].shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopKSearch(torch.ones(4), 1), r"queries \(4,\); expected \[Q, D\]"),
        (lambda: TopKSearch(torch.ones(2, 4), 0), "k is 0"),
        (lambda: TopKSearch(torch.ones(2, 4), 1, [torch.float16]), "float16.*allowed"),
        (lambda: TopKSearch(torch.ones(2, 4), 1).add(torch.ones(3, 5), 0), r"expected \[N, 4\]"),
        (lambda: TopKSearch(torch.ones(2, 4), 1).add(torch.ones(3, 4), -1), "first_place is -1"),
        (
            lambda: TopKSearch(torch.ones(2, 4), 1).add(torch.ones(3, 4), 2**32 - 2),
            f"first_place is {2**32 - 2} for 3 rows; allowed 0 .. {2**32 - 3}",
        ),
    ],
)
def test_requests_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_bad_row_late_in_the_pool_is_named_by_its_place(bad):
    found = TopKSearch(torch.randn(3, 4), 2)
    rows = torch.randn(5000, 4)
    rows[4321] = bad
    with pytest.raises(ValueError, match="candidate row 104321 has norm"):
        found.add(rows, 100000)


MEASURE = """
import re, sys, torch
from pathlib import Path
from tracelib.retrieval.search import TopKSearch, estimate_search_bytes
from tracelib.retrieval.tensor_search import search_top_k
torch.set_num_threads(1)
search_top_k(torch.randn(600, 32), torch.randn(6000, 32), 10)  # loads the libraries
chunk_size = int(sys.argv[2])
num_candidates = max(20000, chunk_size)
queries, candidates = torch.randn(3000, 256), torch.randn(num_candidates, 256).half()
if sys.argv[1] == "equal":
    candidates[1:] = candidates[0]
    candidates[0] *= -1
def read(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = read("VmRSS")
search = TopKSearch(queries, 50)
for start in range(0, num_candidates, chunk_size):
    search.add(candidates[start : start + chunk_size], start)
search.result()
print(f"[{read('VmHWM') - before}, {estimate_search_bytes(3000, 256, 50, chunk_size)}]")
"""


def measure_memory(pool, chunk_size):
    """Return the most memory that a search in a new process took, and the estimate of it."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, pool, str(chunk_size)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return json.loads(done.stdout)


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)


@needs_proc
def test_estimate_of_memory_where_all_is_scored():
    measured, estimated = measure_memory("equal", 5000)
    assert measured / 1.2 < estimated < 2 * measured


@needs_proc
@pytest.mark.parametrize("chunk_size", [5000, 33000], ids=["no guess", "guess"])
def test_estimate_of_memory_where_most_is_dropped(chunk_size):
    measured, estimated = measure_memory("noise", chunk_size)
    assert measured < estimated


def test_estimate_does_not_know_the_pool():
    assert estimate_search_bytes(1000, 768, 50, 2**20) < 2**30
    assert estimate_search_bytes(2000, 768, 50, 4096) > estimate_search_bytes(1000, 768, 50, 4096)
