"""The bench of rationale construction, small: its rows are there, and its tree is M-BEIR's."""

import pytest

from tracelib.construction.queries import QuerySettings, SourceQueries

pytest.importorskip("openai")


def test_shape_is_m_beirs(load_script, tmp_path):
    shape = load_script("mbeir_shape")
    num_queries = shape.write_train_tree(tmp_path, scale=0.0005)
    queries = SourceQueries(QuerySettings(tmp_path))
    assert len(queries) == num_queries == 575  # 1.15 M at full scale
    found = {f"{query.dataset}_task{query.task_id}" for query in queries}
    assert found == set(shape.TRAIN_QUERIES)
    assert all(query.target_id == query.query_id and query.instruction for query in queries)


def test_a_phase_runs_through_the_stub(load_script):
    cot = load_script("cot")
    rows = []
    stub = cot._STUB
    cot.run_plan(cot.Plan(stub, 0.001, 8, 60), rows.append)
    assert rows == list(range(61))  # told once before the first
    assert cot.read_own_megabytes() > 10
