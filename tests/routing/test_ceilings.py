"""Areas of orders whose worth is known beforehand."""

import importlib
from pathlib import Path

import pytest
import torch

from tracelib.data.mbeir import MBEIRReader
from tracelib.retrieval.per_query import PerQuery, write_per_query

FOLDER = Path(__file__).parents[2] / "experiments" / "routing"


def test_an_order_that_knows_who_gains_is_the_oracle(tiny_scenes, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    queries = list(MBEIRReader(tiny_scenes).read_queries("test"))
    hard = torch.tensor([query.difficulty for query in queries])
    zeros = torch.zeros(len(queries), dtype=torch.long)
    for gate, ranks in (
        ("never", 1 - hard),
        ("always", zeros + 1),
    ):  # hard ones gain, and only they
        per_query = PerQuery(
            [query.query_id for query in queries],
            [query.column for query in queries],
            zeros,
            hard,
            zeros + 1,
            {"local": ranks, "union": ranks},
            zeros.bool(),
            zeros,
            1.0 - hard,  # the head has it the wrong way round
            zeros.bool(),
        )
        write_per_query(tmp_path / "evaluation" / gate / "per_query.parquet", per_query)
    areas = importlib.import_module("ceilings").measure_ceilings(tmp_path, tiny_scenes)
    for order in ("difficulty", "number_of_edits", "task_and_edits", "head_then_luck"):
        assert areas[order] == pytest.approx(1), order
    assert areas["head"] < -0.5
