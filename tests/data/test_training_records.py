import pytest

from tests.tiny import cut_scenes
from tracelib.data.mbeir import MBEIRReader
from tracelib.data.training_records import TrainingRecords


@pytest.fixture(scope="module")
def reader(tiny_scenes, tmp_path_factory):
    return MBEIRReader(cut_scenes(tiny_scenes, tmp_path_factory.mktemp("records") / "scenes"))


def make(reader, held_out=0.0):
    return TrainingRecords(reader, "separate", 0, 0, None, None, held_out, None, "hard")


def test_a_query_is_trained_on_or_held_out(reader):
    queries, pool = make(reader).read_all()
    records = make(reader, 0.3)
    trained, same_pool, labels = records.read_trained()
    held_out = records.read_share(0.3)
    assert labels is None
    assert same_pool.ids.tolist() == held_out.candidates.ids.tolist() == pool.ids.tolist()
    parts = [*trained.ids.tolist(), *held_out.queries.ids.tolist()]
    assert sorted(parts) == sorted(queries.ids.tolist())
    assert 0.2 < len(held_out.queries) / len(queries) < 0.4


def test_all_queries_can_be_read_as_an_evaluation_set(reader):
    records = make(reader, 0.3)
    found, (queries, _) = records.read_share(1.0), records.read_all()
    assert sorted(found.queries.ids.tolist()) == sorted(queries.ids.tolist())
    with pytest.raises(ValueError, match=r"none of 160 training queries is held out"):
        records.read_share(0.0)
