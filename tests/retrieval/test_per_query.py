import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from tracelib.metrics.ranking import RaggedIds
from tracelib.retrieval.evaluation import QueryFacts, Ranking, Thoughts
from tracelib.retrieval.per_query import collect_per_query, read_per_query, write_per_query

FACTS = QueryFacts(
    column_names=["a_task0", "fashioniq_task7"],
    column_codes=torch.tensor([0, 1, 0]),
    positives=RaggedIds.from_lists([[0], [3], [2, 4]]),
    num_positives=torch.tensor([1, 1, 3]),
    difficulty=torch.tensor([0, 1, -1]),
    prompt_numbers=torch.zeros(3, dtype=torch.long),
)
PLACES = torch.tensor([[0, 1, 2, 9, 9, 9], [9, 9, 9, 9, 9, 3], [4, 2, 1, 0, 9, 9]])
THOUGHTS = Thoughts(
    thinks=torch.tensor([False, True, True]),
    think_probability=torch.tensor([0.25, torch.nan, 1.0]),
    emb_is_first=torch.tensor([True, False, False]),
    rationale_token_ids=[[], [5], [6, 7]],
    is_forced=torch.zeros(3, dtype=torch.bool),
    seconds=None,
)


@pytest.fixture
def queries():
    rankings = {
        "local": Ranking(PLACES[:, :5], torch.zeros(3, 5)),
        "union": Ranking(PLACES, torch.zeros(3, 6)),
    }
    return collect_per_query(["0:1", "7:1", "0:2"], FACTS, THOUGHTS, rankings)


def as_lists(queries):
    values = dataclasses.asdict(queries) | queries.first_ranks
    del values["first_ranks"]
    return {n: v.tolist() if isinstance(v, torch.Tensor) else list(v) for n, v in values.items()}


def test_reads_back(tmp_path, queries):
    path = tmp_path / "deep" / "per_query.parquet"
    write_per_query(path, queries)
    found = as_lists(read_per_query(path))
    expected = as_lists(queries)
    probabilities = found.pop("think_probability")
    assert probabilities == pytest.approx(expected.pop("think_probability"), nan_ok=True)
    assert found == expected
    assert found["local"] == [1, 0, 1]  # the second query's positive is deeper than the list
    assert found["union"] == [1, 6, 1]
    assert found["num_tokens"] == [1, 2, 3]
    assert found["emb_is_first"] == [True, False, False]
    assert probabilities[::2] == [0.25, 1.0]
    assert found["columns"] == ["a_task0", "fashioniq_task7", "a_task0"]


def test_is_a_table_for_others_too(tmp_path, queries):
    write_per_query(tmp_path / "a.parquet", queries)
    rows = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows[1] == {
        "query_id": "7:1",
        "column": "fashioniq_task7",
        "prompt_number": 0,
        "difficulty": 1,
        "num_positives": 1,
        "rank_local": 0,
        "rank_union": 6,
        "thinks": True,
        "num_tokens": 2,
        "think_probability": pytest.approx(torch.nan, nan_ok=True),
        "emb_is_first": False,
    }


def test_failed_write_leaves_the_old_rows(tmp_path, queries):
    path = tmp_path / "per_query.parquet"
    write_per_query(path, queries)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"different lengths.*'query_id': 2"):
        write_per_query(path, dataclasses.replace(queries, query_ids=["0:1", "7:1"]))
    with pytest.raises(UnicodeEncodeError):
        write_per_query(path, dataclasses.replace(queries, query_ids=["0:1", "7:1", "\ud800"]))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["per_query.parquet"]


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really PAR1", None])
def test_other_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "per_query.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"per_query\.parquet is no Parquet file"):
        read_per_query(path)


def test_other_table_is_refused_by_its_columns(tmp_path):
    pq.write_table(pa.table({"query_id": ["0:1"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has columns \['query_id'\]; expected"):
        read_per_query(tmp_path / "a.parquet")
