import pytest
import torch
from torch.nn import functional

from tests.reference.search import search
from tracelib.retrieval.search import search_top_k


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
