"""Scenes as text pairs and the embedded backbone as a text model, for sentence-transformers.

Its own loader of a Qwen2.5-VL would need torchvision.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2Model

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.jsonl import read_rows, write_rows
from tracelib.data.layout import Layout
from tracelib.models.encoder import Encoder

_TEXT_TASK = 1  # text to text
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings"),
)


def write_text_tree(root: Path, folder: Path) -> None:
    """Write a Scenes tree whose train queries are captions of passages, one for each passage.

    No passage comes twice, so no batch has a false negative and neither side needs to look for one.

    Args:
        root: A Scenes tree, to whose other files the new tree links.
        folder: The new tree's root.
    """
    old, new = Layout(root), Layout(folder)
    by_positive = {
        row.fields["pos_cand_list"][0]: row.fields
        for row in read_rows(old.query("scenes", "train"))
        if row.fields["task_id"] == _TEXT_TASK
    }
    ids = {fields["qid"] for fields in by_positive.values()}
    write_rows(new.query("scenes", "train"), list(by_positive.values()))
    qrels = old.qrels("scenes", "train").read_text().splitlines(keepends=True)
    new.qrels("scenes", "train").parent.mkdir(parents=True, exist_ok=True)
    new.qrels("scenes", "train").write_text("".join(q for q in qrels if q.split()[0] in ids))
    for name in ("query", "cand_pool", "qrels", "instructions"):
        for path in (root / name).rglob("*.*"):
            link = folder / path.relative_to(root)
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())


def read_pairs(data: MBEIRDataModule) -> dict[str, list[str]]:
    """Return the texts of all training pairs as the recipe renders them, in the data's order.

    Returns:
        `anchor` and `positive`, each text with its embedding token.

    Raises:
        ValueError: A text read again gives other tokens.
    """
    tokenizer, dataset = data.processor.tokenizer, data.train_dataset
    texts: dict[str, list[str]] = {"anchor": [], "positive": []}
    for place in range(len(dataset)):
        batch = dataset[[place]]
        for name, (chunk,) in (("anchor", batch.query), ("positive", batch.candidate)):
            ids = chunk.input_ids[0].tolist()
            texts[name].append(tokenizer.decode(ids, skip_special_tokens=False))
            if tokenizer(texts[name][-1], add_special_tokens=False)["input_ids"] != ids:
                raise ValueError(f"{texts[name][-1]!r}, read again, gives other tokens")
    return texts


def export_text_model(encoder: Encoder, tokenizer: Any, folder: Path) -> None:
    """Write the language model of a Qwen2.5-VL as a Qwen2, and its tokenizer to `tokenizer`.

    Beside a Qwen2 the tokenizer would be taken for Qwen2's own, which cuts numbers up. On text the
    three rotary positions are one, so the states are those of the whole model.

    Args:
        encoder: Holds the model, without LoRA.
        tokenizer: Its tokenizer, embedding token included.
        folder: Where to.
    """
    source: Any = encoder.model
    language_model = source.model.language_model
    sizes = {name: getattr(language_model.config, name) for name in _SIZES}
    rotary = language_model.config.rope_parameters
    config = Qwen2Config(
        **sizes,
        rope_parameters={"rope_type": "default", "rope_theta": rotary["rope_theta"]},
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = Qwen2Model(config).to(torch.float32)
    model.load_state_dict(language_model.state_dict())
    model.save_pretrained(folder)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None  # the texts have been through it
    tokenizer.save_pretrained(folder / "tokenizer")
