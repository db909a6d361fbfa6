import shutil
from dataclasses import replace

import pytest

from tests.tiny import cut_scenes
from tracelib.data.layout import Layout
from tracelib.data.mbeir import DataError, MBEIRReader
from tracelib.data.rationales import write_rationales
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
    with pytest.raises(ValueError, match=r"none of 160 training queries is in a share"):
        records.read_share(0.0)


def test_only_annotated_queries_are_trained_on(reader, tmp_path):
    queries, _ = make(reader).read_all()
    kept = set(queries.query_ids[::3])
    root = shutil.copytree(reader.root, tmp_path / "scenes")
    rows = [row for row in reader.read_rationales("train") if row.query_id in kept]
    write_rationales(Layout(root, "fewer").rationales("scenes", "train"), rows)
    fewer = MBEIRReader(root, rationale_folder="fewer")
    trained, _, _ = replace(make(fewer), only_annotated=True).read_trained()
    assert set(trained.query_ids) == kept
    half, _, _ = replace(make(fewer, 0.5), only_annotated=True).read_trained()
    held_out = make(fewer, 0.5).read_share(0.5).queries
    assert set(half.query_ids) == kept - set(held_out.query_ids)
    assert len(make(fewer).read_trained()[0]) == 160
    (root / "none").mkdir()
    nobody = replace(make(MBEIRReader(root, rationale_folder="none")), only_annotated=True)
    with pytest.raises(
        DataError, match=r"none of the 160 .* \(data.only_annotated\); check data.r"
    ):
        nobody.read_trained()
