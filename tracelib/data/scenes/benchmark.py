"""The `scenes` verb: writes the embedded benchmark as an M-BEIR tree."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import track

from tracelib.data.jsonl import write_rows
from tracelib.data.layout import Layout
from tracelib.data.rationales import RationaleRow, write_rationales
from tracelib.data.records import TASK_MODALITIES
from tracelib.data.scenes import wording
from tracelib.data.scenes.drawing import draw_scene
from tracelib.data.scenes.queries import DATASET_ID, DrawnCandidate, DrawnQuery, DrawnSplit
from tracelib.data.scenes.world import Split
from tracelib.types import RationaleSource

_VERSION = 1
"""Raised whenever the same parameters would give another tree."""
_README = """# Scenes

A generated benchmark in the layout of M-BEIR: dataset `scenes`, id {dataset_id}, seed {seed}. Cards
of 2 x 2 coloured shapes are to be found by caption, by picture, or by a card and numbered edits.
Hard queries chain 2 .. 4 edits.

| task | query | candidate | hard |
|---|---|---|---|
| 0, 1, 2 | caption, or a caption with edits | picture, passage, picture and passage | 30 % |
| 3, 4 | picture | caption, another drawing | 0 % |
| 6, 7, 8 | picture and edits | caption, picture, picture and passage | 70 % |

No scene is in two splits. In val and test no scene is in two pools, and a pool holds for each query
its target, the states on the way there from the source on, two neighbours of the target that differ
in one attribute, and random scenes. Train queries come in pairs whose sources differ in one
attribute; each has the other's target as its negative, unless both have the same target. Train task
3 asks for the captions of the cards that task 6 edits, in the same pictures.

`rationales/mbeir_scenes_<split>_rationales.jsonl` has one row per query: `qid`, `task_id`,
`difficulty` (1 for hard, 0 for easy), `reasoning` and `answer` (null for easy), `cot_conf`
(confidence, 0 .. 1), `source` (`teacher`: written without sight of the target), `teacher` (who
wrote it). Parameters and counts are in `scenes.json`.
"""
_MORE_README = """# {title} of Scenes

Rows as in `rationales`, but of source `{source}`, {how}, for every query. Hard ones have their
chain of thought, easy ones a short one: each ends in the target's description.
`data.rationale_folder: {folder}` reads them.
"""
_MORE_FOLDERS: dict[str, tuple[RationaleSource, str, str]] = {
    "rationales_all": ("teacher", "More rationales", "written without sight of the target"),
    "rationales_oracle": ("oracle", "Oracle rationales", "written knowing query and target"),
}
"""Folders of rationales for every query: their source, and the words of their README."""


def scenes(
    root: Path = Path("data/scenes"),
    seed: int = 0,
    num_train: int = 12000,
    num_val: int = 512,
    num_test: int = 2048,
) -> None:
    """Write the Scenes benchmark, an M-BEIR tree with pictures and rationales, in half a minute.

    The folder `rationales` has teacher rationales of hard queries, `rationales_all` of all queries,
    and `rationales_oracle` such as know the target.

    Args:
        root: Folder of the tree. When it holds the tree of these parameters already, it gets the
            folders of rationales that it lacks, and is left alone otherwise.
        seed: Seed of everything drawn; equal seeds give equal bytes.
        num_train: Train queries, a multiple of 16 up to 160,000, as many of each task.
        num_val: Val queries, a multiple of 8 up to 8,192.
        num_test: Test queries, a multiple of 8 up to 8,192.

    Raises:
        ValueError: A number is out of its range, or `root` holds something else.
    """
    numbers: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
    for split, number in numbers.items():
        step, limit = (16, 160_000) if split == "train" else (8, 8192)
        if number not in range(step, limit + 1, step):
            raise ValueError(f"num_{split} is {number}, no multiple of {step} in {step} .. {limit}")
    parameters = {"version": _VERSION, "seed": seed, "num_queries": numbers}
    if root.exists():
        _check_same(root, parameters)
        lacking = [name for name in _MORE_FOLDERS if not (root / name).exists()]
        if not lacking:
            Console().print(f"{root} holds this tree already")
            return
        splits = [_draw(split, seed, number) for split, number in numbers.items()]
        for name in lacking:
            _add_rationales(root, name, splits)
        Console().print(f"{root}: added {', '.join(lacking)}")
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
        tree = Path(temporary) / "tree"
        candidate_numbers = itertools.count(1)
        num_candidates: dict[str, int] = {}
        num_pictures: dict[str, int] = {}
        splits = [_draw(split, seed, number) for split, number in numbers.items()]
        for drawn in splits:
            num_candidates |= _write_split(Layout(tree), drawn, candidate_numbers)
            num_pictures[drawn.split] = len(drawn.pictures)
            _draw_pictures(tree, drawn)
        for name in _MORE_FOLDERS:
            _add_rationales(tree, name, splits)
        _write_instructions(Layout(tree).instructions)
        (tree / "README.md").write_text(_README.format(dataset_id=DATASET_ID, seed=seed))
        manifest = {**parameters, "num_candidates": num_candidates, "num_pictures": num_pictures}
        (tree / "scenes.json").write_text(json.dumps(manifest, indent=2) + "\n")
        tree.rename(root)
    Console().print(
        f"{root}: wrote {sum(numbers.values())} queries, {sum(num_pictures.values())} pictures"
    )


def _check_same(root: Path, parameters: dict[str, Any]) -> None:
    if not (manifest := root / "scenes.json").exists():
        raise ValueError(
            f"{root} exists and is no Scenes tree (no scenes.json); remove it or take another"
        )
    written = json.loads(manifest.read_text())
    found = {name: written.get(name) for name in parameters}
    if found != parameters:
        raise ValueError(
            f"{root} holds the tree of {found}, asked for is that of {parameters}; "
            "remove it or take another"
        )


def _draw(split: Split, seed: int, num_queries: int) -> DrawnSplit:
    drawn = DrawnSplit(split, seed)
    drawn.add_queries(num_queries)
    return drawn


def _add_rationales(root: Path, name: str, splits: Sequence[DrawnSplit]) -> None:
    """Write a folder of rationales for every query into a tree, in full or not at all."""
    source, title, how = _MORE_FOLDERS[name]
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=root) as temporary:
        written = Layout(Path(temporary), name)
        for drawn in splits:
            rows = (_make_rationale(query, source, is_for_all=True) for query in drawn.queries)
            write_rationales(written.rationales("scenes", drawn.split), rows)
        readme = _MORE_README.format(title=title, source=source, how=how, folder=name)
        (written.root / name / "README.md").write_text(readme)
        (written.root / name).rename(root / name)


def _write_split(
    layout: Layout, drawn: DrawnSplit, candidate_numbers: Iterator[int]
) -> dict[str, int]:
    """Number the candidates in shuffled order and write everything but the pictures.

    Returns:
        Number of candidates by column and split.
    """
    split = drawn.split
    stems = {f"scenes_task{task_id}": [task_id] for task_id in drawn.pools}
    if split == "train":
        stems = {"scenes": list(drawn.pools)}
    union: list[dict[str, Any]] = []
    num_candidates = {}
    for stem, task_ids in stems.items():
        pool = [candidate for task_id in task_ids for candidate in drawn.pools[task_id].values()]
        drawn.rng.shuffle(pool)
        for candidate in pool:
            candidate.candidate_id = f"{DATASET_ID}:{next(candidate_numbers)}"
        rows = [_format_candidate(candidate) for candidate in pool]
        union += rows
        num_candidates[f"{stem}_{split}"] = len(rows)
        if split != "train":
            write_rows(layout.pool(stem, split), rows)
        queries = [query for query in drawn.queries if query.task_id in task_ids]
        write_rows(layout.query(stem, split), map(_format_query, queries))
        _write_qrels(layout.qrels(stem, split), queries)
    write_rows(layout.union_pool(split), union)
    rationales = (_make_rationale(query, "teacher", is_for_all=False) for query in drawn.queries)
    write_rationales(layout.rationales("scenes", split), rationales)
    return num_candidates


def _write_qrels(path: Path, queries: list[DrawnQuery]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for query in queries:
            file.write(f"{query.query_id} 0 {query.positive.candidate_id} 1 {query.task_id}\n")


def _format_candidate(candidate: DrawnCandidate) -> dict[str, Any]:
    return {
        "did": candidate.candidate_id,
        "txt": candidate.text,
        "img_path": candidate.image_path,
        "modality": candidate.modality,
        "src_content": None,
    }


def _format_query(query: DrawnQuery) -> dict[str, Any]:
    return {
        "qid": query.query_id,
        "query_txt": query.text,
        "query_img_path": query.image_path,
        "query_modality": TASK_MODALITIES[query.task_id][0],
        "query_src_content": None,
        "pos_cand_list": [query.positive.candidate_id],
        "neg_cand_list": [candidate.candidate_id for candidate in query.negatives],
        "task_id": query.task_id,
    }


def _make_rationale(query: DrawnQuery, source: RationaleSource, is_for_all: bool) -> RationaleRow:
    """Return a query's row, which has a text if it is hard or `is_for_all`."""
    is_hard = len(query.states) > 2
    reasoning, answer = None, None
    if is_hard or is_for_all:
        reasoning, answer = wording.write_whole_rationale(query.states)
    return RationaleRow(
        query_id=query.query_id,
        task_id=query.task_id,
        difficulty=int(is_hard),
        reasoning=reasoning,
        answer=answer,
        confidence=1.0,
        source=source,
        teacher="scenes rules",
    )


def _draw_pictures(tree: Path, drawn: DrawnSplit) -> None:
    folder = tree / "mbeir_images" / "scenes" / drawn.split
    folder.mkdir(parents=True)
    for number, scene in enumerate(track(drawn.pictures, f"drawing {drawn.split} pictures"), 1):
        rng = Random(f"scenes {drawn.seed} {drawn.split} picture {number}")
        draw_scene(scene, rng).save(folder / f"{number}.png")


def _write_instructions(path: Path) -> None:
    header = (
        "query_modality",
        "cand_modality",
        "dataset_name",
        "dataset_id",
        *(f"prompt_{i}" for i in range(1, 5)),
    )
    rows = [
        (*key, "Scenes", str(DATASET_ID), *prompts) for key, prompts in wording.INSTRUCTIONS.items()
    ]
    path.parent.mkdir(parents=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
