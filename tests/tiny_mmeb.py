"""Small MMEB trees in the hub's layout: texts with image slots, drawn pictures, Parquet shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]
SLOT = "<|image_1|>\n"
COLORS = ("red", "green", "blue", "black", "white")
SUBSETS = ("ImageNet-1K", "HatefulMemes", "ScienceQA", "WebQA", "MSCOCO_t2i", "RefCOCO")
"""One of each group at least, and both distributions."""


def write_table(path: Path, rows: list[Row]) -> Path:
    """Write rows as Parquet, or as JSON Lines where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_rows(subset: str, num_rows: int) -> list[Row]:
    """Return evaluation rows; gold is the row's colour, and other colours follow it."""
    rows = []
    for i in range(num_rows):
        names = [COLORS[(i + k) % len(COLORS)] for k in range(3)]
        picture = f"{subset}/{names[0]}.png"
        pictures = [f"{subset}/{name}.png" for name in names]
        is_text = {"tgt_text": names, "tgt_img_path": [""] * 3}
        is_picture = {"tgt_text": [f"{SLOT}Represent the given image.\n"] * 3} | {
            "tgt_img_path": pictures
        }
        rows.append(
            {
                "ImageNet-1K": {
                    "qry_text": f"{SLOT}Represent the given image for classification\n",
                    "qry_img_path": picture,
                    **is_text,
                },
                "HatefulMemes": {
                    "qry_text": f"{SLOT}Is {names[0]} hateful?\n",
                    "qry_img_path": picture,
                    "tgt_text": ["Yes", "No"] if i % 2 else ["No", "Yes"],
                    "tgt_img_path": ["", ""],
                },
                "ScienceQA": {
                    "qry_text": f"{SLOT}Represent the given image with the following question:"
                    f" which colour is number {i}?\n",
                    "qry_img_path": picture,
                    **is_text,
                },
                "WebQA": {  # a slot and no picture, as the hub has it
                    "qry_text": f"{SLOT}Find a Wikipedia image that answers: what is {names[0]}?\n",
                    "qry_img_path": "",
                    **is_picture,
                },
                "MSCOCO_t2i": {
                    "qry_text": f"Find me an image that matches: a {names[0]} one.\n",
                    "qry_img_path": "",
                    **is_picture,
                },
                "RefCOCO": {
                    "qry_text": f"{SLOT}Select the portion: {names[0]} part {i}\n",
                    "qry_img_path": picture,
                    **is_picture,
                },
            }[subset]
        )
    return rows


def write_mmeb_eval(root: Path, num_rows: int = 6) -> Path:
    """Write an evaluation tree of `SUBSETS`; WebQA comes in two shards."""
    for subset in SUBSETS:
        rows = make_rows(subset, num_rows)
        if subset == "WebQA":
            write_table(root / subset / "test-00000-of-00002.parquet", rows[:2])
            write_table(root / subset / "test-00001-of-00002.parquet", rows[2:])
        else:
            write_table(root / subset / "test-00000-of-00001.parquet", rows)
        _draw(root, subset)
    return root


def write_mmeb_train(root: Path, num_rows: int = 7) -> Path:
    """Write training pairs of ImageNet_1K, with negatives and in both styles, and of WebQA."""
    for style, words in (("original", "Represent the image"), ("diverse_instruction", "Name it")):
        rows = [
            {
                "qry": f"{SLOT}{words}\n",
                "qry_image_path": f"ImageNet_1K/{COLORS[i % 5]}.png",
                "pos_text": COLORS[i % 5],
                "pos_image_path": "",
                "neg_text": (COLORS[(i + 1) % 5], COLORS[i % 5], "")[i % 3],
                "neg_image_path": "",
            }
            for i in range(num_rows)
        ]
        write_table(root / "ImageNet_1K" / f"{style}-00000-of-00001.parquet", rows)
    rows = [
        {
            "qry": f"{SLOT}what is {COLORS[i % 5]}?\n",
            "qry_image_path": "",
            "pos_text": f"{SLOT}Represent it. {COLORS[i % 5]}\n",
            "pos_image_path": f"WebQA/{COLORS[i % 5]}.png",
        }
        for i in range(num_rows)
    ]
    write_table(root / "WebQA" / "original-00000-of-00002.parquet", rows[:3])
    write_table(root / "WebQA" / "original-00001-of-00002.parquet", rows[3:])
    for subset in ("ImageNet_1K", "WebQA"):
        _draw(root, subset)
    return root


def _draw(root: Path, subset: str) -> None:
    folder = root / "images" / subset
    folder.mkdir(parents=True, exist_ok=True)
    for i, color in enumerate(COLORS):
        Image.new("RGB", (28 + 4 * i, 28), color).save(folder / f"{color}.png")
