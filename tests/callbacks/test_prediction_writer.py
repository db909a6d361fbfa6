from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tracelib.callbacks.prediction_writer import PredictionWriter
from tracelib.recipe import build_cli

THRESHOLD = 0.47
"""Has some of the queries think: an untrained router is close to a half."""


@pytest.fixture(scope="module")
def prediction(small_recipe, tmp_path_factory):
    """The command line after `predict`, and the folder it wrote."""
    folder = tmp_path_factory.mktemp("predict")
    writer = {
        "class_path": "tracelib.callbacks.prediction_writer.PredictionWriter",
        "init_args": {"output_dir": str(folder / "predictions")},
    }
    options = [
        f"--trainer.callbacks={json.dumps([writer])}",
        f"--trainer.default_root_dir={folder}",
        "--trainer.logger=false",
        "--data.eval_batch_size=48",
        f"--model.gate.init_args.threshold={THRESHOLD}",
        "--return_predictions=false",
    ]
    return build_cli(["predict", *small_recipe, *options], run=True), folder / "predictions"


def read_side(folder, side):
    """Return tensors and names in the split's order."""
    files = sorted(folder.glob(f"{side}-r0-*.safetensors"))
    parts = [load_file(path) for path in files]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    lines = [path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines() for path in files]
    rows = [json.loads(line) for part in lines for line in part]
    order = tensors["indices"].argsort()
    return len(files), {k: v[order] for k, v in tensors.items()}, [rows[i] for i in order.tolist()]


def test_every_query_is_written_once_with_its_thought(prediction):
    cli, folder = prediction
    queries = cli.datamodule.evaluation_sets["test"].queries
    num_files, tensors, rows = read_side(folder, "queries")
    assert num_files == -(-len(queries) // 48) > 1
    assert tensors["indices"].tolist() == list(range(len(queries)))
    assert tensors["embeddings"].dtype == torch.float32
    assert [row["query_id"] for row in rows] == [query.query_id for query in queries]
    assert 0 < tensors["thinks"].sum() < len(queries)
    assert not (tensors["is_forced"] & ~tensors["thinks"]).any()
    assert torch.equal(tensors["thinks"], tensors["think_probability"] >= THRESHOLD)
    written = torch.tensor([bool(row["rationale"]) for row in rows])
    assert not (written & ~tensors["thinks"]).any()
    assert written.any()


def test_every_candidate_is_written_once(prediction):
    cli, folder = prediction
    candidates = cli.datamodule.evaluation_sets["test"].candidates
    _, tensors, rows = read_side(folder, "candidates")
    assert set(tensors) == {"embeddings", "indices"}
    assert tensors["indices"].tolist() == list(range(len(candidates)))
    assert [row["candidate_id"] for row in rows] == [c.candidate_id for c in candidates]


def test_embeddings_are_the_modules_own(prediction):
    cli, folder = prediction
    module = cli.model.eval()
    queries, candidates = cli.datamodule.build_evaluation_loaders("test")
    for side, loader, embed in (
        ("queries", queries, lambda batch: module.embed_queries(batch).embeddings),
        ("candidates", candidates, module.embed_candidates),
    ):
        batch = next(iter(loader))
        with torch.no_grad():
            expected = embed(batch)
        torch.testing.assert_close(
            read_side(folder, side)[1]["embeddings"][batch.indices], expected
        )


def test_no_temporary_file_is_left(prediction):
    _, folder = prediction
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".jsonl"}


def test_predictions_are_not_mixed(prediction):
    cli, folder = prediction
    with pytest.raises(FileExistsError, match=r"remove .* or choose another output_dir"):
        PredictionWriter(folder).setup(cli.trainer, cli.model, "predict")


def test_other_stages_make_no_folder(prediction, tmp_path):
    cli, _ = prediction
    PredictionWriter(tmp_path / "new").setup(cli.trainer, cli.model, "fit")
    assert not (tmp_path / "new").exists()
