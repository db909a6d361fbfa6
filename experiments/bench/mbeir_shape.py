"""Writes the train split of a tree in M-BEIR's shape: its data sets, tasks and sizes, no pictures.

python experiments/bench/mbeir_shape.py ROOT [--scale 1]
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from jsonargparse import auto_cli
from reader import write_text

from tracelib.data.layout import DATASET_NAMES, Layout
from tracelib.data.records import TASK_MODALITIES

TRAIN_QUERIES = {
    "visualnews_task0": 99_000,
    "mscoco_task0": 100_000,
    "fashion200k_task0": 15_000,
    "webqa_task1": 16_000,
    "edis_task2": 26_000,
    "webqa_task2": 17_000,
    "visualnews_task3": 100_000,
    "mscoco_task3": 113_000,
    "fashion200k_task3": 15_000,
    "nights_task4": 16_000,
    "oven_task6": 150_000,
    "infoseek_task6": 141_000,
    "fashioniq_task7": 16_000,
    "cirr_task7": 26_000,
    "oven_task8": 157_000,
    "infoseek_task8": 143_000,
}
"""Train queries by column, in thousands as the paper has them (Wei et al., UniIR, 2024)."""


def write_train_tree(root: Path, scale: float = 1.0) -> int:
    """Write train queries, their pool and the prompts; each query has a target of its own.

    Args:
        root: Folder for the tree.
        scale: Share of M-BEIR's queries, above 0; at least one per column.

    Returns:
        Number of queries.
    """
    layout, rng = Layout(root), random.Random(0)
    counts = dict.fromkeys(DATASET_NAMES, 0)
    for path in (layout.query("cirr", "train"), layout.union_pool("train"), layout.instructions):
        path.parent.mkdir(parents=True, exist_ok=True)
    with layout.union_pool("train").open("w") as pool:
        for column, num_full in TRAIN_QUERIES.items():
            dataset, _, task = column.partition("_task")
            first = counts[dataset] + 1
            counts[dataset] += max(1, round(scale * num_full))
            with layout.query(dataset, "train").open("w" if first == 1 else "a") as queries:
                for number in range(first, counts[dataset] + 1):
                    name = f"{DATASET_NAMES.index(dataset)}:{number}"
                    queries.write(json.dumps(_make_query(rng, dataset, name, int(task))) + "\n")
                    pool.write(json.dumps(_make_candidate(rng, dataset, name, int(task))) + "\n")
    lines = [
        "\t".join((*modalities, name, str(number), *(f"find {name} {i}" for i in range(4))))
        for number, name in enumerate(DATASET_NAMES)
        for modalities in TASK_MODALITIES.values()
    ]
    layout.instructions.write_text("\n".join(["header", *lines]) + "\n")
    return sum(counts.values())


def _make_query(rng: random.Random, dataset: str, name: str, task: int) -> dict[str, object]:
    modality = TASK_MODALITIES[task][0]
    picture = f"mbeir_images/{dataset}/q{name.partition(':')[2]}.jpg"
    return {
        "qid": name,
        "query_txt": write_text(rng, 12) if "text" in modality else None,
        "query_img_path": picture if "image" in modality else None,
        "query_modality": modality,
        "query_src_content": None,
        "pos_cand_list": [name],
        "neg_cand_list": [],
        "task_id": task,
    }


def _make_candidate(rng: random.Random, dataset: str, name: str, task: int) -> dict[str, object]:
    modality = TASK_MODALITIES[task][1]
    picture = f"mbeir_images/{dataset}/{name.partition(':')[2]}.jpg"
    return {
        "did": name,
        "txt": write_text(rng, 60) if "text" in modality else None,
        "img_path": picture if "image" in modality else None,
        "modality": modality,
        "src_content": None,
    }


if __name__ == "__main__":
    auto_cli(write_train_tree, as_positional=True)
