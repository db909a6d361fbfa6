"""A benchmark and a recipe that a test can run whole, in a second or two."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.jsonl import read_rows, write_rows
from tracelib.data.layout import Layout
from tracelib.metrics.ranking import RaggedIds
from tracelib.module import RetrievalModule
from tracelib.recipe import build_cli, find_adapter
from tracelib.retrieval.evaluation import QueryFacts

RECIPE: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "encoder": {
            "class_path": "tracelib.models.encoder.Encoder",
            "init_args": {"lora": {"rank": 4, "alpha": 8}},
        },
        "contrastive": {"class_path": "tracelib.losses.contrastive.InfoNCELoss"},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "gate": "tracelib.models.gates.AlwaysGate",
        "max_rationale_tokens": 5,
    },
    "data": {
        "contrastive_batch_size": 16,
        "eval_batch_size": 12,
        "num_workers": 0,
        "max_image_tokens": 4,
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "limit_train_batches": 3,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"name": "tiny"},
        },
        "callbacks": [
            {"class_path": "tracelib.callbacks.retrieval_evaluation.RetrievalEvaluation"},
        ],
    },
}


def write_recipe(folder: Path, root: Path, backbone: Path) -> list[str]:
    """Write the tiny recipe, whose runs go to `folder`/tiny/version_N; return the arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    places = {
        "model.encoder.init_args.backbone": backbone,
        "data.root": root,
        "trainer.default_root_dir": folder,
        "trainer.logger.init_args.save_dir": folder,
    }
    return [f"--config={path}", *(f"--{key}={place}" for key, place in places.items())]


def rewrite_adapter(run: Path, change: Any) -> None:
    """Replace the weights of a run's adapter file by `change(weights)`."""
    path = find_adapter(run)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)


def build(args: list[str]) -> tuple[RetrievalModule, MBEIRDataModule]:
    """Return the model and the data, ready to train, that the arguments name."""
    cli = build_cli(args, run=False)
    cli.datamodule.setup("fit")
    return cli.model, cli.datamodule


def read_metrics(run: Path) -> dict[str, list[float]]:
    """Return what a run logged, by metric, in the order of its steps."""
    logged: dict[str, list[float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    logged.setdefault(name, []).append(float(value))
    return logged


def cut_scenes(source: Path, root: Path, queries_per_column: int = 4, pool_size: int = 8) -> Path:
    """Copy a Scenes tree, with a few queries and candidates per column in val and test."""
    old, new = Layout(source), Layout(root)
    pictures: set[str] = set()
    query_ids: dict[str, set[str]] = {split: set() for split in ("train", "val", "test")}
    stems = [("scenes", "train")]
    stems += [(stem, split) for split in ("val", "test") for stem in old.find_stems(split)]
    for stem, split in stems:
        is_train = split == "train"
        queries = _read(old.query(stem, split))
        queries = queries if is_train else queries[:queries_per_column]
        positives = {row["pos_cand_list"][0] for row in queries}
        pool = _read(old.union_pool(split) if is_train else old.pool(stem, split))
        others = [row["did"] for row in pool if row["did"] not in positives]
        kept = positives | set(others[: None if is_train else pool_size - len(positives)])
        pool = [row for row in pool if row["did"] in kept]
        write_rows(new.query(stem, split), queries)
        write_rows(new.union_pool(split) if is_train else new.pool(stem, split), pool)
        pictures |= {row["img_path"] for row in pool} | {row["query_img_path"] for row in queries}
        kept_ids = {row["qid"] for row in queries}
        qrels = old.qrels(stem, split).read_text().splitlines(keepends=True)
        new.qrels(stem, split).parent.mkdir(parents=True, exist_ok=True)
        new.qrels(stem, split).write_text(
            "".join(line for line in qrels if line.split()[0] in kept_ids)
        )
        query_ids[split] |= kept_ids
    for split, kept_ids in query_ids.items():
        rows = _read(old.rationales("scenes", split))
        write_rows(new.rationales("scenes", split), [row for row in rows if row["qid"] in kept_ids])
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if path.is_file() and (name.parts[0] == "instructions" or str(name) in pictures):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).hardlink_to(path)
    return root


def rewrite_rows(path: Path, change: Any) -> None:
    """Replace the rows of a JSON Lines file, which may be a link, by `change(rows)`."""
    rows = change(_read(path))
    path.unlink()
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )


def _read(path: Path) -> list[dict[str, Any]]:
    return [row.fields for row in read_rows(path)]


def make_facts(columns: list[str], difficulty: list[int]) -> QueryFacts:
    """Return facts of queries of these columns, without positives."""
    names = list(dict.fromkeys(columns))
    return QueryFacts(
        names,
        torch.tensor([names.index(column) for column in columns]),
        RaggedIds.from_lists([[] for _ in columns]),
        torch.ones(len(columns), dtype=torch.long),
        torch.tensor(difficulty),
        torch.zeros(len(columns), dtype=torch.long),
    )
