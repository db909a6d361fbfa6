import pytest
import torch

from tracelib.retrieval.faiss_search import FaissSearch
from tracelib.retrieval.ranking import _refuse_constant, _Share, rank_pools
from tracelib.retrieval.search import TopKSearch
from tracelib.retrieval.tensor_search import search_top_k

QUERIES, CANDIDATES = torch.randn(9, 6), torch.randn(70, 6)
POOLS = {"a_task0": range(0, 40), "b_task1": range(40, 43), "c_task2": range(43, 70)}
SPANS = {"a_task0": range(0, 4), "b_task1": range(4, 6), "c_task2": range(6, 9)}
DEPTH = 8


def cut(candidates=CANDIDATES, size=7):
    return {
        column: [
            (start, candidates[start : min(start + size, pool.stop)])
            for start in range(pool.start, pool.stop, size)
        ]
        for column, pool in POOLS.items()
    }


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("build_search", [TopKSearch, FaissSearch])
def test_one_pass_ranks_local_pools_and_their_union(size, build_search):
    rankings = rank_pools(QUERIES, SPANS, cut(size=size), DEPTH, build_search)
    scores, places = search_top_k(QUERIES, CANDIDATES, DEPTH)
    assert torch.equal(rankings["union"].places, places)
    torch.testing.assert_close(rankings["union"].scores, scores)
    for column, span in SPANS.items():
        pool = POOLS[column]
        rows = CANDIDATES[pool.start : pool.stop]
        _, expected = search_top_k(QUERIES[span.start : span.stop], rows, min(DEPTH, len(rows)))
        found = rankings["local"].places[span.start : span.stop]
        assert torch.equal(found[:, : expected.shape[1]], expected + pool.start)
        assert (found[:, expected.shape[1] :] == -1).all()


def test_a_pool_without_queries_counts_in_the_union():
    spans = {"a_task0": range(0, 9)}
    union = rank_pools(QUERIES, spans, cut(), DEPTH)["union"]
    assert torch.equal(union.places, search_top_k(QUERIES, CANDIDATES, DEPTH)[1])


def test_queries_without_a_pool_are_named():
    with pytest.raises(ValueError, match=r"no pool for the queries of \['d_task3'\]"):
        rank_pools(QUERIES, {"d_task3": range(9)}, cut(), DEPTH)


def test_constant_queries_are_refused():
    with pytest.raises(ValueError, match="all 9 query embeddings are the same"):
        rank_pools(QUERIES[:1].repeat(9, 1), SPANS, cut(), DEPTH)
    rank_pools(QUERIES[:1], {"a_task0": range(1)}, cut(), DEPTH)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_constant_pool_is_refused_by_name(size):
    candidates = CANDIDATES.clone()
    candidates[40:43] = candidates[40]
    with pytest.raises(ValueError, match="all 3 candidate embeddings of b_task1 are the same"):
        rank_pools(QUERIES, SPANS, cut(candidates, size), DEPTH)


def look(*chunks):
    share = _Share()
    for chunk in chunks:
        share.see(torch.tensor(chunk))
    return share


def test_a_share_may_be_constant_where_the_pool_is_not():
    same, other, empty = look([[1.0, 0.0], [1.0, 0.0]]), look([[0.0, 1.0]]), look()
    _refuse_constant("a_task0", [same, other, empty])
    _refuse_constant("a_task0", [empty, look([[1.0, 0.0]])])  # one candidate
    _refuse_constant("a_task0", [same, look([[1.0, 0.0]], [[0.0, 1.0]])])
    with pytest.raises(ValueError, match="all 3 candidate"):
        _refuse_constant("a_task0", [empty, same, look([[1.0, 0.0]])])
