import json

import pytest

from tests.tiny import cut_scenes
from tracelib.data.jsonl import DataError
from tracelib.data.mbeir import MBEIRReader
from tracelib.data.rationales import RationaleRow
from tracelib.data.route_labels import read_route_labels


@pytest.fixture(scope="module")
def queries(tiny_scenes, tmp_path_factory):
    root = cut_scenes(tiny_scenes, tmp_path_factory.mktemp("labels") / "scenes")
    return MBEIRReader(root).read_queries("train")


def write(path, labels, **change):
    """Write a row per query id and label; `change` is of the last row."""
    rows = [
        RationaleRow(name, 0, label, "so", None, None, "self", "me").format_fields()
        | {"split": "train", "soft_target": target}
        for name, (label, target) in labels.items()
    ]
    rows[-1] |= change
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_come_in_the_order_of_the_queries(queries, tmp_path):
    names = queries.query_ids
    labels = {names[7]: (1, 0.75), names[2]: (0, 0.25), names[100]: (-1, 0.5), names[3]: (-1, -1)}
    path = write(tmp_path / "labels.jsonl", labels)
    hard, soft = read_route_labels(path, queries), read_route_labels(path, queries, "soft")
    assert (hard.dtype, soft.dtype) == ("int64", "float32")
    assert len(hard) == len(soft) == len(queries)
    for i, name in enumerate(names):
        assert (hard[i], soft[i]) == labels.get(name, (-1, -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": "99:5"}, r":2: qid '99:5' is no query of the train split"),
        ({"qid": "FIRST"}, r":2: qid '.*' is also in line 1"),
        ({"split": "val"}, r":2: split 'val' is not 'train': ids are unique within a split only"),
        ({"split": None}, ":2: field 'split' is missing"),
        ({"difficulty": 2}, ":2: difficulty 2 is none of"),
        ({"soft_target": 1.5}, r":2: soft_target 1\.5 is neither -1 nor a number"),
        ({"soft_target": True}, ":2: soft_target True"),
    ],
)
def test_a_bad_row_is_named(queries, tmp_path, change, message):
    first, second = queries.query_ids[:2]
    change = {k: first if v == "FIRST" else v for k, v in change.items()}
    path = write(tmp_path / "labels.jsonl", {first: (1, 0.9), second: (0, 0.1)}, **change)
    with pytest.raises(DataError, match=f"labels.jsonl{message}"):
        read_route_labels(path, queries, "soft")


def test_a_missing_file_is_named(queries, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl: the file is missing"):
        read_route_labels(tmp_path / "nothing.jsonl", queries)
