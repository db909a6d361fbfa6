"""The `mine` verb: hard negatives of all training queries, found with a fitted run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tracelib.callbacks.embedding_session import EmbeddingSession
from tracelib.callbacks.gate_embedding import SplitEmbedder
from tracelib.callbacks.stored_mining import (
    PROMPT_POLICY,
    SPLIT,
    MiningPool,
    mine_session,
    open_training_session,
)
from tracelib.data.evaluation_set import EvaluationSet
from tracelib.data.jsonl import read_rows, write_rows
from tracelib.data.mined_negatives import REPORT_FILE
from tracelib.data.query_file import QueryFile
from tracelib.data.records import MAX_CANDIDATE_NUMBER, MAX_QUERY_NUMBER, decode_ids
from tracelib.data.table_cache import hash_file
from tracelib.data.tables import Ints
from tracelib.fitted_run import AT_A_HALF, LoadedRun, choose_gates
from tracelib.models.gates import Gate
from tracelib.recipe import load_run
from tracelib.retrieval.hard_negatives import HardNegatives, MiningRule
from tracelib.retrieval.runs import collect_provenance, write_whole


def mine(
    run: Path,
    pool: MiningPool = "local",
    depth: int = 50,
    max_similarity: float = 0.7,
    num_negatives: int = 5,
    gate: str | None = None,
    output: Path | None = None,
    store_dir: Path = Path("runs", "embeddings"),
) -> None:
    """Mine hard negatives of all training queries with a fitted run.

    Queries are embedded as under the run's gate and ranked in the train pool. Of a query's nearest
    candidates all its positives are passed over, those of other data sets and copies of one
    included; then what is nearer than the cap is dropped, and the nearest of the rest are kept.

    The output gets the query files of the data, in the same places, with other `neg_cand_list`s,
    and report.json. Fit the next round with --data.mined_negatives OUTPUT and
    --data.num_hard_negatives N. Embeddings are kept: interrupted, the verb goes on where it was.

    Args:
        run: Folder of the run, which holds config.yaml.
        pool: `local` ranks the candidates of the query's data set and target modality, as M-BEIR's
            local pools do; `union` ranks all.
        depth: Nearest candidates of a query to look at, its positives not counted.
        max_similarity: Cosine above which a candidate is dropped, -1 .. 1; 1 drops none.
        num_negatives: Most negatives of a query, 1 .. depth.
        gate: Name of the gate that says which queries think; default is the recipe's.
        output: Folder to write to; default is `mined` in the run.
        store_dir: Where embeddings are kept.

    Raises:
        FileNotFoundError: The run is not finished.
        ValueError: An option is out of its range, the run has no such gate, or the output would
            replace the data.
    """
    rule = MiningRule(depth, max_similarity, num_negatives)
    loaded, output, console = _load(run), output or run / "mined", Console()
    if output.resolve() == loaded.data.root.resolve():
        raise ValueError(f"output {output} is data.root, whose query files it would replace")
    chosen = _choose_gate(loaded, gate)
    session = _embed(loaded, chosen, store_dir, console)
    columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        task = progress.add_task(f"{loaded.name}: search", total=1.0)
        negatives = mine_session(
            session,
            pool,
            rule,
            loaded.module.device,
            lambda share: progress.update(task, completed=share),
        )
    report = output / REPORT_FILE
    report.unlink(missing_ok=True)  # it says that all files are of one mining
    hashes = _write_rows(output, session.found, negatives, loaded.data.root)
    summary = negatives.summarize() | {"columns": _summarize_columns(session.found, negatives)}
    provenance = _describe(loaded) | {
        "gate_settings": chosen.describe(),
        "pool": pool,
        "rule": dataclasses.asdict(rule),
        "rows_sha256": hashes,
    }
    content = {"provenance": provenance, "summary": summary}
    write_whole(report, json.dumps(content, indent=1) + "\n")
    _print(console, summary, rule)
    console.print(f"written to {output}", soft_wrap=True)


def _load(run: Path) -> LoadedRun:
    """Return a run with all its training queries, each once, and their pool."""
    module, data, config = load_run(run)
    data.set_up_training_queries()
    fingerprint = module.compute_fingerprint()
    module = module.to("cuda" if torch.cuda.is_available() else "cpu")
    module.encoder.prepare_inference()
    name = run.parent.name if run.name.startswith("version_") else run.name
    return LoadedRun(name, run, SPLIT, module, data, config, fingerprint)


def _choose_gate(loaded: LoadedRun, name: str | None) -> Gate:
    """Return the recipe's gate, or the one that is asked for.

    Raises:
        ValueError: The run was not trained for it.
    """
    if name is None:
        return loaded.module.gate
    gates = {gate.name: gate for gate in choose_gates(loaded, AT_A_HALF)}
    if name not in gates:
        raise ValueError(f"gate is {name!r}; {loaded.folder} can be asked under {list(gates)}")
    return gates[name]


def _embed(loaded: LoadedRun, gate: Gate, store_dir: Path, console: Console) -> EmbeddingSession:
    """Return the embeddings of all training queries and of their pool, made where missing."""
    module, data = loaded.module, loaded.data
    session = open_training_session(module, data, gate, store_dir, loaded.fingerprint)
    embedder = SplitEmbedder(loaded.name, module, data, SPLIT, console)
    embedder.embed_candidates(session)
    embedder.embed_queries([gate], [session])
    session.finish()
    return session


def _write_rows(
    output: Path, found: EvaluationSet, negatives: HardNegatives, root: Path
) -> dict[str, str]:
    """Write the query files with other negatives; return the SHA-256 of each by relative path."""
    order = np.argsort(found.queries.ids)
    ids, mined = found.queries.ids[order], negatives.places.numpy()
    hashes = {}
    for file in found.queries.files:
        source = file.table.source
        name = source.relative_to(root)
        places = order[np.searchsorted(ids, file.ids)]
        write_rows(output / name, _replace_negatives(file, mined[places], found.candidates.ids))
        hashes[name.as_posix()] = hash_file(output / name)
    return hashes


def _replace_negatives(file: QueryFile, mined: Ints, ids: Ints) -> Iterator[dict[str, Any]]:
    """Yield the rows of a query file, each with the ids at its places in `mined`."""
    for row, places in zip(read_rows(file.table.source), mined, strict=True):
        kept = ids[places[places >= 0]].tolist()
        yield row.fields | {"neg_cand_list": list(decode_ids(kept, MAX_CANDIDATE_NUMBER))}


def _describe(loaded: LoadedRun) -> dict[str, Any]:
    """Return the provenance of what was mined, but for how."""
    hashes = loaded.data.reader.file_hashes(SPLIT)
    dtype = str(loaded.module.encoder.dtype)
    provenance = collect_provenance(loaded.config, hashes, PROMPT_POLICY, dtype)
    return provenance | {"run": loaded.name, "split": SPLIT, "weights": loaded.fingerprint}


def _summarize_columns(found: EvaluationSet, negatives: HardNegatives) -> dict[str, dict[str, Any]]:
    """Return the summary of each column's queries, by its name."""
    queries = found.queries
    keys = np.stack([queries.ids // MAX_QUERY_NUMBER, queries.task_ids])
    _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    columns = {}
    for number, place in enumerate(first.tolist()):
        own = torch.from_numpy(np.flatnonzero(inverse.ravel() == number))
        columns[queries[place].column] = negatives.select(own).summarize()
    return columns


def _print(console: Console, summary: dict[str, Any], rule: MiningRule) -> None:
    """Print what was kept by column, and what other caps would have left."""
    table = Table(title=f"hard negatives, cosine at most {rule.max_similarity}")
    for name in ("column", "queries", "of them without", "with fewer", "kept", "mean cosine"):
        table.add_column(name, justify="left" if name == "column" else "right")
    for name, row in (*summary["columns"].items(), ("all", summary)):
        counts = (row["num_queries"], row["num_without"], row["num_with_fewer"])
        mean = row["mean_similarity"]
        cells = [f"{count:,}" for count in (*counts, row["num_negatives"])]
        table.add_row(name, *cells, "" if mean is None else f"{mean:.3f}")
    console.print(table)
    table = Table(title=f"queries with negatives, of the {rule.depth} nearest candidates")
    for name in ("cosine at most", "at least one", f"all {rule.num_negatives}"):
        table.add_column(name, justify="right")
    for row in summary["caps"]:
        shares = (row["share_with_any"], row["share_with_all"])
        table.add_row(str(row["max_similarity"]), *(f"{share:.1%}" for share in shares))
    console.print(table)
    dropped = summary["num_dropped_as_positive"], summary["num_dropped_by_cap"]
    console.print("dropped: {:,} positives or copies of one, {:,} by the cap".format(*dropped))
    if summary["num_without"] or summary["num_with_fewer"]:
        console.print("to have more: raise --depth, which keeps the cap, or --max_similarity")
