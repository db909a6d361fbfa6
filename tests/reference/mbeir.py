"""An M-BEIR tree read the slow way: every file a list of dicts, every lookup a dict or a loop."""

import json
import zlib
from random import Random

MODALITIES = {0: "image", 1: "text", 2: "image,text", 3: "text", 4: "image", 6: "text"}
MODALITIES |= {7: "image", 8: "image,text"}


def format_text(text):
    text = (text or "").replace("\r", "").strip().strip('"')
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def read_json(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_pool(path):
    """Return (id, formatted text, image path, modality) of each candidate."""
    return [
        (row["did"], format_text(row.get("txt")), row.get("img_path"), row["modality"])
        for row in read_json(path)
    ]


def read_queries(root, split, stem, policy="fixed", seed=0):
    """Return the fields of each query, in the order of `tracelib.types.Query`."""
    dataset = stem.partition("_task")[0]
    thoughts = root / "rationales" / f"mbeir_{dataset}_{split}_rationales.jsonl"
    rationales = {row["qid"]: row for row in read_json(thoughts)}
    prompts = {}
    for line in (root / "instructions" / "query_instructions.tsv").read_text().splitlines()[1:]:
        query_modality, modality, _, dataset_id, *cells = line.split("\t")
        prompts[dataset_id, query_modality, modality] = [format_text(c) for c in cells if c]
    positives = {}
    qrels = root / "qrels" / split / f"mbeir_{stem}_{split}_qrels.txt"
    for line in qrels.read_text().splitlines():
        qid, _, did, relevance, _ = line.split()
        if int(relevance) and did not in positives.setdefault(qid, []):
            positives[qid].append(did)
    queries = []
    for row in read_json(root / "query" / split / f"mbeir_{stem}_{split}.jsonl"):
        qid, task = row["qid"], row["task_id"]
        own = row["pos_cand_list"] if split == "train" else positives[qid]
        choices = prompts[qid.split(":")[0], row["query_modality"], MODALITIES[task]]
        chosen = {
            "fixed": [(0, choices[0])],
            "per_query_hash": [(0, choices[zlib.crc32(qid.encode()) % len(choices)])],
            "random": [(0, Random(f"{seed} {split} {qid}").choice(choices))],
            "all": list(enumerate(choices, 1)),
        }
        found = rationales.get(qid)
        thought = None
        if found and found["answer"]:
            thought = (found["reasoning"], found["answer"], found["source"])
        for number, prompt in chosen[policy]:
            words = format_text(f"{prompt} {row['query_txt'] or ''}")
            queries.append(
                (
                    qid,
                    f"{dataset}_task{task}",
                    task,
                    words.removeprefix(prompt).removeprefix(" "),
                    row["query_img_path"],
                    prompt,
                    tuple(own),
                    thought,
                    found and found["difficulty"],
                    tuple(did for did in row["neg_cand_list"] if did not in own),
                    number,
                )
            )
    return queries
