"""Bad input through the real command line: it stops the fit by name, or is counted."""

import json
import os
import re
import shutil

import pytest

from tests.tiny import cut_scenes, read_metrics, rewrite_rows, write_recipe
from tracelib.cli import main
from tracelib.data.images import ImageError
from tracelib.data.jsonl import DataError
from tracelib.data.layout import Layout


@pytest.fixture(scope="module")
def shared_root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("bad") / "scenes")


@pytest.fixture
def root(shared_root, tmp_path):
    """A copy of the benchmark to break, of links: write no file through."""
    return shutil.copytree(shared_root, tmp_path / "scenes", copy_function=os.link)


@pytest.fixture
def fit(root, tiny_backbone, tmp_path):
    """Fits on the broken benchmark and returns what was logged."""

    def fit(*options):
        args = write_recipe(tmp_path / "runs", root, tiny_backbone)
        main(["fit", *args, "--trainer.limit_train_batches=10", "--trainer.max_epochs=1", *options])
        return read_metrics(max((tmp_path / "runs" / "tiny").iterdir()))

    return fit


def find_picture(root, split):
    """Return the path of a picture that is a candidate's, and its place in the tree."""
    layout = Layout(root)
    pool = layout.union_pool(split) if split == "train" else layout.pool("scenes_task0", split)
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    positives = layout.query("scenes" if split == "train" else "scenes_task0", split).read_text()
    row = next(row for row in rows if row["img_path"] and f'"{row["did"]}"' in positives)
    return root / row["img_path"]


@pytest.mark.parametrize(("split", "num_workers"), [("train", 0), ("train", 1), ("val", 0)])
def test_a_missing_picture_stops_the_fit_by_name(root, fit, split, num_workers):
    path = find_picture(root, split)
    path.unlink()
    with pytest.raises(ImageError, match=re.escape(f"{path}: the file is missing")):
        fit(f"--data.num_workers={num_workers}")


def test_a_picture_cut_short_stops_the_fit_by_name(root, fit):
    path = find_picture(root, "train")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=re.escape(f"{path}: no whole picture")):
        fit()


def test_a_broken_line_stops_the_fit_by_file_and_line(root, fit):
    path = Layout(root).query("scenes", "train")
    rewrite_rows(path, lambda rows: [*rows[:4], '{"qid": "10:\n', *rows[5:]])
    with pytest.raises(DataError, match=re.escape(f"{path}:5: ") + ".*is no JSON"):
        fit()


def test_an_unknown_positive_stops_the_fit_by_its_id(root, fit):
    path = Layout(root).query("scenes", "train")
    rewrite_rows(path, lambda rows: [{**rows[0], "pos_cand_list": ["10:999999"]}, *rows[1:]])
    with pytest.raises(DataError, match="no candidate '10:999999', a positive of query"):
        fit()


def test_an_unknown_negative_stops_the_fit_by_its_id(root, fit):
    path = Layout(root).query("scenes", "train")
    rewrite_rows(path, lambda rows: [{**row, "neg_cand_list": ["10:999999"]} for row in rows])
    with pytest.raises(DataError, match="no candidate '10:999999', a hard negative of query"):
        fit("--data.num_hard_negatives=1")
    fit()  # nobody asked for them


def test_a_candidate_that_comes_twice_stops_the_fit_by_file_and_line(root, fit):
    path = Layout(root).pool("scenes_task3", "val")
    rewrite_rows(path, lambda rows: [*rows, rows[0]])
    with pytest.raises(DataError, match=re.escape(f"{path}:9: ") + ".*occurs twice"):
        fit()


def test_an_empty_pool_stops_the_fit_by_its_file(root, fit):
    path = Layout(root).pool("scenes_task3", "val")
    rewrite_rows(path, lambda rows: [])
    with pytest.raises(DataError, match=re.escape(f"{path}: the file is empty")):
        fit()


def test_a_batch_larger_than_the_split_stops_the_fit_by_its_key(fit):
    with pytest.raises(
        ValueError, match=r"fill no global batch of 1000 .*data\.contrastive_batch_size"
    ):
        fit("--data.contrastive_batch_size=1000")


def test_pools_smaller_than_the_deepest_recall_are_reported(fit, caplog):
    logged = fit("--trainer.limit_train_batches=1")
    assert "pools of fewer than 50 candidates, ranked whole: scenes_task0 (8)" in caplog.text
    assert logged["val/local/all_columns/recall@50"] == [1.0]
    assert logged["val/union/all_columns/recall@50"] < [1.0]


def test_thoughts_that_overrun_are_cut_and_counted(fit):
    logged = fit("--trainer.limit_train_batches=1", "--model.max_rationale_tokens=2")
    assert logged["val/forced_emb_token_rate"][0] > 0.5
    assert logged["val/tokens_per_query"][0] <= 3
    assert logged["val/think_rate/all"] == [1.0]
