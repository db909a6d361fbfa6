"""Questions about Scenes in the words that the embedded backbone knows, and the right replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tracelib.construction.teachers.teacher import Request

SYSTEM = {"role": "system", "content": "Work step by step."}


def read_hard_queries(root: Path) -> list[tuple[dict[str, Any], str]]:
    """Return the train queries that need thought, each with its reference rationale."""
    rationales = _read(root / "rationales/mbeir_scenes_train_rationales.jsonl")
    right = {r["qid"]: f"{r['reasoning']} {r['answer']}" for r in rationales if r["difficulty"]}
    queries = _read(root / "query/train/mbeir_scenes_train.jsonl")
    return [(query, right[query["qid"]]) for query in queries if query["qid"] in right]


def make_request(query: dict[str, Any], **changes: Any) -> Request:
    """Ask about a query, greedily unless told otherwise."""
    text = f"Work it out. {query['query_txt']}."
    content: Any = text
    if path := query["query_img_path"]:
        content = [{"type": "image_path", "path": path}, {"type": "text", "text": text}]
    fields = {
        "key": query["qid"],
        "messages": [SYSTEM, {"role": "user", "content": content}],
        "max_tokens": 96,
        "temperature": 0.0,
        "seed": 0,
    }
    return Request(**{**fields, **changes})


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
