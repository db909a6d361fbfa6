"""The `mmeb` verb: a fitted run on MMEB v1, subset by subset, beside published numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tracelib.data.jsonl import read_rows, write_rows
from tracelib.data.mmeb.reader import MMEBReader, MMEBSubset
from tracelib.data.table_cache import hash_file
from tracelib.metrics.accuracy import GoldAccuracy, GoldComparison, compare_gold
from tracelib.mmeb.embedding import EmbeddedSubset, MMEBEncoder
from tracelib.mmeb.table import build_mmeb_table, build_subset_table, mean_over_groups
from tracelib.models.gates import Gate, HeadGate
from tracelib.recipe import find_runs, load_run
from tracelib.retrieval.own_candidates import score_own_candidates
from tracelib.retrieval.runs import ResultRow, collect_provenance, write_results

FORMAT_VERSION = 1
"""Raised whenever SUBSET.json changes its meaning, so that all subsets are evaluated again."""
_METRICS = ("accuracy", "accuracy_strict", "think_rate", "tokens_per_query")
_TABLE_WIDTH = 136
_NUM_QUERIES = 1000
"""Queries of each subset on the hub."""


def mmeb(
    root: Path,
    run: Path | None = None,
    subsets: list[str] | None = None,
    query_rewrites: Path | None = None,
    candidate_rewrites: Path | None = None,
    images_root: Path | None = None,
    gate: Gate | None = None,
    cache_dir: Path | None = None,
    runs_folder: Path = Path("runs"),
) -> None:
    """Evaluate a fitted run on MMEB v1 and print its accuracy beside published numbers.

    RUN/mmeb/GATE/ gets, per subset, SUBSET.json (numbers and provenance) and
    SUBSET_generated.jsonl (a line per query: rank of the gold candidate, prediction, rationale),
    and results.json over all. A subset whose SUBSET.json has the same provenance is not evaluated
    again, so an interrupted evaluation goes on where it was.

    Args:
        root: Folder in the layout of the hub's MMEB-eval: SUBSET/test-00000-of-00001.parquet.
        run: Folder of the run, which holds config.yaml; default is the newest one.
        subsets: Subsets to evaluate, e.g. `[CIRR,NIGHTS]`; default is all that are below the root.
        query_rewrites: YAML file that maps subsets to rewrites of their queries (original,
            replacement, prefix_add, suffix_add, value_map); default leaves the texts alone.
        candidate_rewrites: The same for candidates.
        images_root: Folder that picture paths start from; default is images in the root.
        gate: Which queries think; default is the recipe's gate.
        cache_dir: Where converted files are kept; default is .tracelib in the root.
        runs_folder: Where the newest run is looked for.

    Raises:
        FileNotFoundError: No finished run is found.
        ValueError: A file of MMEB or of rewrites is not as it should be, or the gate asks a router
            that the run does not have.
    """
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    reader = MMEBReader(root, images_root, query_rewrites, candidate_rewrites, cache_dir)
    names = list(dict.fromkeys(subsets or reader.find_subsets()))
    hashes = {name: reader.hash_files(name, "test") for name in names}
    run = run or next(reversed(find_runs(runs_folder)), None)
    if run is None:
        raise FileNotFoundError(f"{runs_folder} holds no finished run: fit one or name one (--run)")
    encoder, config, provenance = _load(run, gate, reader.images_root)
    provenance["images_root"] = os.path.relpath(reader.images_root, root)
    for option, path in (
        ("query_rewrites", query_rewrites),
        ("candidate_rewrites", candidate_rewrites),
    ):
        provenance[option] = "" if path is None else hash_file(path)
    folder = run / "mmeb" / encoder.gate.name
    results: dict[str, dict[str, Any]] = {}
    bar = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *bar, console=console) as progress:
        for name in progress.track(names, description="subsets"):
            known = provenance | {"data_hashes": hashes[name]}
            found = _find_result(folder / f"{name}.json", known)
            if found is None:
                subset = reader.read_eval(name)
                found = _evaluate(encoder, subset, folder, progress)
                found |= {"reading": _describe_reading(reader, subset), "provenance": known}
                # Last of the subset's files: where it is, the others are too.
                write_rows(folder / f"{name}.json", [found])
            results[name] = found
    all_hashes = {path: digest for group in hashes.values() for path, digest in group.items()}
    description = collect_provenance(config, all_hashes, "none", str(encoder.module.encoder.dtype))
    run_name = run.parent.name if run.name.startswith("version_") else run.name
    rows = _tabulate(run_name, encoder.gate.name, results)
    write_results(folder / "results.json", rows, provenance | description)
    _report(console, f"{run_name}, {encoder.gate.name}", results)
    console.print(f"written to {folder}", soft_wrap=True)


def _load(
    run: Path, gate: Gate | None, images_root: Path
) -> tuple[MMEBEncoder, dict[str, Any], dict[str, Any]]:
    """Return a run ready to embed, its recipe, and what decides its embeddings."""
    module, data, config = load_run(run)
    gate = gate or module.gate
    if isinstance(gate, HeadGate) and module.router is None:
        raise ValueError(f"gate {gate.name!r} asks a router and {run} has none; choose another")
    settings = json.dumps({key: config[key] for key in ("model", "data")}, sort_keys=True)
    provenance = {
        "weights": module.compute_fingerprint(),
        "recipe": hashlib.sha256(settings.encode()).hexdigest(),
        "gate": gate.describe(),
        "dtype": str(module.encoder.dtype),
        "format_version": FORMAT_VERSION,
    }
    module = module.to("cuda" if torch.cuda.is_available() else "cpu")
    module.encoder.prepare_inference()
    encoder = MMEBEncoder(
        module,
        dataclasses.replace(data.renderer, root=images_root),
        gate,
        data.eval_batch_size,
        data.num_workers,
    )
    return encoder, config, provenance


def _find_result(path: Path, provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what an earlier evaluation of the same things wrote, or None."""
    if not path.exists():
        return None
    (row,) = read_rows(path)
    return row.fields if row.fields.get("provenance") == provenance else None


def _evaluate(
    encoder: MMEBEncoder, subset: MMEBSubset, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Embed and judge a subset, write a line per query, return its numbers."""
    embedded = encoder.embed(subset, progress)
    places, offsets = torch.from_numpy(subset.places), torch.from_numpy(subset.offsets)
    scores = score_own_candidates(embedded.queries, embedded.candidates, places, offsets)
    comparison = compare_gold(scores, offsets)
    decode = encoder.renderer.processor.tokenizer.decode
    rationales = [str(decode(ids)) for ids in embedded.rationale_token_ids]
    write_rows(
        folder / f"{subset.name}_generated.jsonl",
        _describe_queries(subset, comparison, embedded, rationales),
    )
    metric = GoldAccuracy()
    metric.update(comparison)
    num_tokens = [len(ids) + 1 for ids in embedded.rationale_token_ids]
    return {
        "subset": subset.name,
        **{name: value.item() for name, value in metric.compute().items()},
        "num_correct": int(metric.num_correct),
        "num_correct_strict": int(metric.num_correct_strict),
        "num_queries": len(subset.queries),
        "num_candidates": len(subset.candidates),
        "think_rate": embedded.thinks.float().mean().item(),
        "tokens_per_query": sum(num_tokens) / len(num_tokens),
        "num_forced": int(embedded.is_forced.sum()),
    }


def _describe_queries(
    subset: MMEBSubset, comparison: GoldComparison, embedded: EmbeddedSubset, rationales: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield a line per query; `prediction` is a place among its own candidates, the gold one 0."""
    for i, query in enumerate(subset.queries):
        best = int(comparison.best[i])
        place = subset.places[subset.offsets[i] + best]
        yield {
            "query_id": query.query_id,
            "gold_rank": int(comparison.num_above[i]) + 1,
            "num_tied": int(comparison.num_tied[i]),
            "prediction": best,
            "prediction_id": subset.candidates[place].candidate_id,
            "thinks": bool(embedded.thinks[i]),
            "is_forced": bool(embedded.is_forced[i]),
            "rationale": rationales[i],
        }


def _describe_reading(reader: MMEBReader, subset: MMEBSubset) -> dict[str, Any]:
    """Return the counts of each side, and whether a given file of rewrites forgets the subset."""
    return {
        side: dataclasses.asdict(counts)
        | {"lacks_rewrite": subset.name not in (reader.rewrites[side] or {subset.name})}
        for side, counts in subset.counts.items()
    }


def _find_remarks(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader of the numbers has to know."""
    if found["num_queries"] != _NUM_QUERIES:
        yield f"{name}: {found['num_queries']:,} queries, not the benchmark's {_NUM_QUERIES:,}"
    if found["num_forced"]:
        yield f"{name}: {found['num_forced']:,} thoughts reached the limit; token appended"
    for side, counts in found["reading"].items():
        where, total = f"{name}, {side} texts", f"of {counts['num_texts']:,}"
        if counts["lacks_rewrite"]:
            yield f"{where}: no rewrite in {side}_rewrites"
        for condition, number in counts["num_unmatched"].items():
            if number:
                yield f"{where}: {condition} of {side}_rewrites left {number:,} {total} alone"
        if number := counts["num_slots_without_picture"]:
            yield f"{where}: {number:,} {total} had an image slot and no picture; slot removed"
        if number := counts["num_pictures_without_slot"]:
            yield f"{where}: {number:,} {total} had a picture and no image slot; picture kept"


def _tabulate(run: str, gate: str, results: Mapping[str, dict[str, Any]]) -> list[ResultRow]:
    """Return rows per subset, pool `own`; then means, column `all`, their group as `subset`."""
    rows = [
        ResultRow(run, gate, f"mmeb/{name}", "own", "all", metric, found[metric])
        for name, found in results.items()
        for metric in _METRICS
    ]
    for metric in _METRICS:
        means = mean_over_groups({name: found[metric] for name, found in results.items()})
        rows += [ResultRow(run, gate, "all", "own", m.label, metric, m.value) for m in means]
    return rows


def _report(console: Console, title: str, results: Mapping[str, dict[str, Any]]) -> None:
    """Print remarks, a line per subset, and the means beside published ones."""
    for name, found in results.items():
        for remark in _find_remarks(name, found):
            console.print(remark, soft_wrap=True)
    console.print(build_subset_table(title, results))
    means = {
        label: mean_over_groups({name: found[metric] for name, found in results.items()})
        for label, metric in ((title, "accuracy"), (f"{title}, strict", "accuracy_strict"))
    }
    console.print(build_mmeb_table(means))
    if missing := means[title][-1].missing:
        console.print(f"{len(missing)} of 36 subsets are missing: {', '.join(missing)}")
