import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tracelib.retrieval.search import TopKSearch
from tracelib.retrieval.tensor_search import search_top_k

pytest.importorskip("faiss")
from tracelib.retrieval.faiss_search import FaissSearch


def run(cls, queries, candidates, k, chunk_size):
    found = cls(queries, k)
    starts = list(range(0, len(candidates), chunk_size))
    for start in reversed(starts):
        found.add(candidates[start : start + chunk_size], start + 1000)
    return found.result()


@pytest.mark.parametrize("chunk_size", [7, 100, 10000])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_agrees_with_exact_search(kind, chunk_size):
    queries, candidates = torch.randn(9, 24).to(kind), (torch.randn(500, 24) * 50).to(kind)
    scores, places = run(FaissSearch, queries, candidates, 20, chunk_size)
    expected_scores, expected_places = run(TopKSearch, queries, candidates, 20, chunk_size)
    assert torch.allclose(scores, expected_scores, atol=1e-6)
    assert (places == expected_places).float().mean() > 0.99
    assert scores.dtype == torch.float32
    assert places.dtype == torch.int64


def test_equal_candidates_found_come_by_place():
    candidates = torch.randn(30, 8)[torch.randint(30, (300,))]
    scores, places = run(FaissSearch, torch.randn(5, 8), candidates, 300, 64)
    falls = scores[:, 1:] < scores[:, :-1]
    ties = scores[:, 1:] == scores[:, :-1]
    assert ties.any()
    assert (falls | (ties & (places[:, 1:] > places[:, :-1]))).all()
    assert places.sort(dim=1).values.tolist() == [list(range(1000, 1300))] * 5


def test_fewer_seen_than_k():
    queries, candidates = torch.randn(4, 8), torch.randn(6, 8)
    assert FaissSearch(queries, 50).result()[1].shape == (4, 0)
    scores, places = run(FaissSearch, queries, candidates, 50, 4)
    assert scores.shape == (4, 6)
    assert torch.equal(places - 1000, search_top_k(queries, candidates, 6)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaissSearch(torch.ones(4), 1), r"queries \(4,\)"),
        (lambda: FaissSearch(torch.ones(2, 4), 0), "k is 0"),
        (lambda: FaissSearch(torch.zeros(2, 4), 1), "query row 0 has norm 0.0"),
        (lambda: FaissSearch(torch.ones(2, 4), 1).add(torch.ones(3, 5), 0), r"expected \[N, 4\]"),
        (lambda: FaissSearch(torch.ones(2, 4), 1).add(torch.ones(3, 4), -1), "first_place is -1"),
        (
            lambda: FaissSearch(torch.ones(2, 4), 1).add(torch.ones(3, 4) / 0, 5),
            "candidate row 5 has norm inf",
        ),
    ],
)
def test_requests_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_absence_is_told():
    # a process in which FAISS cannot be imported, as where it is not installed
    code = (
        "import sys, torch; sys.modules['faiss'] = None\n"
        "from tracelib.retrieval.faiss_search import FaissSearch\n"
        "FaissSearch(torch.ones(2, 3), 1)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1
    assert "ImportError: FaissSearch needs FAISS: pip install 'tracelib[faiss]'" in done.stderr
