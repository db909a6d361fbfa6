"""The `evaluate` verb: a fitted run under every gate, beside another run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from tracelib.callbacks.embedding_session import EmbeddingSession, build_keys
from tracelib.callbacks.evaluation_report import describe_evaluation, write_evaluation
from tracelib.callbacks.stored_evaluation import Evaluation, evaluate_session
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.models.router import (
    AlwaysGate,
    FirstTokenGate,
    Gate,
    HeadGate,
    NeverGate,
    TaskPriorGate,
)
from tracelib.module import RetrievalModule
from tracelib.recipe import find_runs, load_run, read_recipe
from tracelib.retrieval.runs import ResultRow, write_results, write_whole
from tracelib.retrieval.tables import build_table, render_markdown

GATES: tuple[Gate, ...] = (NeverGate(), AlwaysGate(), FirstTokenGate(), HeadGate(), TaskPriorGate())
_TABLE_WIDTH = 136
_TABLE_START, _TABLE_END = "<!-- table -->", "<!-- /table -->"


@dataclass(frozen=True)
class _LoadedRun:
    """A fitted run, ready to embed, and what it is called in tables."""

    name: str
    folder: Path
    module: RetrievalModule
    data: MBEIRDataModule
    config: dict[str, Any]


def evaluate(
    run: Path | None = None,
    against: Path | None = None,
    runs_folder: Path = Path("runs"),
    split: Literal["val", "test"] = "test",
    table_in: Path | None = None,
    store_dir: Path | None = None,
) -> None:
    """Evaluate a fitted run under every gate, beside another run, and print one table.

    The gates are never, always, first_token, head and task_prior; a run trained without rationales
    has never alone, one without a router no head. RUN/evaluation/ (RUN/evaluation_val/ for val)
    gets results.json (provenance and tidy rows of both runs) and table.md; below it each gate of
    a run has its own results.json, results.tsv, table.md, run files and a row per query, which
    `compare` reads. Embeddings are kept: interrupted, the verb goes on where it was. Queries/s is
    the time of embedding the queries, without reading files, where none was kept from before.

    Args:
        run: Folder of the run, which holds config.yaml; default is the newest run that was trained
            to think.
        against: Run to show beside it; default is the newest run that was not.
        runs_folder: Where runs are looked for.
        split: Split to evaluate.
        table_in: Markdown file whose part between `<!-- table -->` and `<!-- /table -->` becomes
            the table.
        store_dir: Where embeddings are kept; default is `embeddings` in `runs_folder`.

    Raises:
        FileNotFoundError: No finished run is found.
        ValueError: The two runs are of different data.
    """
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    newest = list(reversed(find_runs(runs_folder)))
    run = (
        run
        or next((path for path in newest if _is_thinking(path)), None)
        or next(iter(newest), None)
    )
    if run is None:
        raise FileNotFoundError(
            f"{runs_folder} holds no finished run: fit one (make quickstart) or name one (--run)"
        )
    against = against or next((path for path in newest if _is_counterpart(path, run)), None)
    folders = [path for path in (run, against) if path is not None]
    runs = [_load(*pair, split) for pair in zip(_name_runs(folders), folders, strict=True)]
    hashes = [loaded.data.reader.file_hashes(split) for loaded in runs]
    if hashes[0] != hashes[-1]:
        raise ValueError(f"{run} and {against} were not fitted on the same data; name another run")
    store_dir = store_dir or runs_folder / "embeddings"
    rows = [row for loaded in runs for row in _evaluate_run(loaded, split, store_dir, console)]
    folder = _get_folder(runs[0], split)
    provenance = describe_evaluation(
        runs[0].data,
        split,
        {loaded.name: loaded.config for loaded in runs},
        str(runs[0].module.encoder.dtype),
    )
    main_gate = {"gate": runs[0].module.gate.name}
    write_results(folder / "results.json", rows, main_gate | provenance)
    write_whole(folder / "table.md", render_markdown(rows))
    if table_in is not None:
        _replace_table(table_in, render_markdown(rows))
    console.print(build_table(rows))
    console.print(
        f"{split} split, means over columns, local pools unless it says union; written to {folder}"
    )


def _is_thinking(folder: Path) -> bool:
    """Whether the recipe of a run was trained on rationales."""
    return bool(read_recipe(folder)["data"]["rationale"] != "none")


def _is_counterpart(path: Path, run: Path) -> bool:
    """Whether one of two runs on the same data and backbone thinks and the other does not."""
    ours, theirs = read_recipe(run), read_recipe(path)
    backbones = [r["model"]["encoder"]["init_args"].get("backbone") for r in (ours, theirs)]
    same_data = ours["data"]["root"] == theirs["data"]["root"]
    return same_data and backbones[0] == backbones[1] and _is_thinking(path) != _is_thinking(run)


def _name_runs(folders: list[Path]) -> list[str]:
    """Return recipe names, the folders above `version_N`; with N where two runs share one."""
    names = [f.parent.name if f.name.startswith("version_") else f.name for f in folders]
    if len(set(names)) < len(names):
        return [f"{folder.parent.name}/{folder.name}" for folder in folders]
    return names


def _load(name: str, folder: Path, split: str) -> _LoadedRun:
    module, data, config = load_run(folder)
    data.setup("validate" if split == "val" else "test")
    return _LoadedRun(
        name, folder, module.to("cuda" if torch.cuda.is_available() else "cpu"), data, config
    )


def _get_folder(loaded: _LoadedRun, split: str) -> Path:
    return loaded.folder / ("evaluation" if split == "test" else f"evaluation_{split}")


def _choose_gates(loaded: _LoadedRun) -> list[Gate]:
    """Return the gates that a run can be asked under."""
    gates: list[Gate] = list(GATES) if _is_thinking(loaded.folder) else [NeverGate()]
    if loaded.module.router is None:
        gates = [gate for gate in gates if not isinstance(gate, HeadGate)]
    return gates


def _evaluate_run(
    loaded: _LoadedRun, split: str, store_dir: Path, console: Console
) -> list[ResultRow]:
    """Embed what is not stored yet, rank, write each gate's files, return all rows."""
    module, data, gates = loaded.module, loaded.data, _choose_gates(loaded)
    fingerprint = module.compute_fingerprint()
    module.encoder.merge_lora()
    sessions = [
        EmbeddingSession(
            data,
            split,
            store_dir,
            build_keys(module, data, gate, fingerprint, "merged"),
            module.encoder.hidden_size,
        )
        for gate in gates
    ]
    seconds = _embed(loaded, split, gates, sessions, console)
    rows: list[ResultRow] = []
    for gate, session in zip(gates, sessions, strict=True):
        evaluation = evaluate_session(
            session, loaded.name, gate.name, seconds[gate.name], module.device
        )
        if num_forced := int(evaluation.thoughts.is_forced.sum()):
            console.print(f"{gate.name}: {num_forced} thoughts reached the limit; token appended")
        evaluation.rows.extend(_judge_thoughts(loaded, gate.name, evaluation))
        provenance = describe_evaluation(data, split, loaded.config, str(module.encoder.dtype))
        write_evaluation(_get_folder(loaded, split) / gate.name, evaluation, provenance)
        rows += evaluation.rows
    return rows


def _embed(
    loaded: _LoadedRun,
    split: str,
    gates: list[Gate],
    sessions: list[EmbeddingSession],
    console: Console,
) -> dict[str, float | None]:
    """Store the candidates and each gate's queries; return seconds, where all were embedded now."""
    module, plans = loaded.module, [session.plan_batches() for session in sessions]
    wanted = [{tuple(batch) for batch in queries} for queries, _ in plans]
    queries = sorted(set().union(*wanted), key=lambda batch: batch[0])
    query_loader, candidate_loader = loaded.data.build_evaluation_loaders(
        split, [list(batch) for batch in queries], plans[0][1]
    )
    seconds = dict.fromkeys((gate.name for gate in gates), 0.0)
    num_timed = dict.fromkeys(seconds, 0)
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, torch.no_grad():
        for candidates in progress.track(
            candidate_loader, description=f"{loaded.name}: candidates"
        ):
            candidates.inputs = candidates.inputs.to(module.device)
            sessions[0].write_candidates(candidates, module.embed_candidates(candidates))
        for batch in progress.track(query_loader, description=f"{loaded.name}: queries"):
            batch.inputs = batch.inputs.to(module.device)
            batch.task_ids = batch.task_ids.to(module.device)
            places = tuple(batch.indices.tolist())
            for gate, session, pending in zip(gates, sessions, wanted, strict=True):
                if places in pending:
                    start = time.perf_counter()
                    output = module.embed_queries(batch, gate)
                    seconds[gate.name] += time.perf_counter() - start
                    num_timed[gate.name] += len(places)
                    session.write_queries(batch, output)
    num_queries = len(sessions[0].found.queries)
    return {n: s if num_timed[n] == num_queries else None for n, s in seconds.items()}


def _judge_thoughts(loaded: _LoadedRun, gate: str, evaluation: Evaluation) -> list[ResultRow]:
    """Return what is said of the thoughts and the router over all queries together."""
    decode, thoughts = loaded.data.processor.tokenizer.decode, evaluation.thoughts
    written = [
        q.rationale and decode(list(ids)) == q.rationale.text
        for q, ids in zip(
            evaluation.evaluation_set.queries, thoughts.rationale_token_ids, strict=True
        )
    ]
    values: dict[tuple[str, str], Tensor] = {
        ("all", "forced_emb_token_rate"): thoughts.is_forced.float().mean()
    }
    hard = [
        right
        for right, think in zip(written, thoughts.thinks.tolist(), strict=True)
        if right is not None and think
    ]
    if hard:
        values["hard", "exact_rationale"] = torch.tensor(hard).float().mean()
    known = evaluation.facts.difficulty >= 0
    if gate == "head" and known.any():
        probability = thoughts.think_probability[known]
        difficulty = evaluation.facts.difficulty[known]
        values["all", "router_auroc"] = binary_auroc(probability, difficulty)
        values["all", "router_ece"] = binary_calibration_error(probability, difficulty)
    return [
        ResultRow(loaded.name, gate, "all", "local", s, m, v.item()) for (s, m), v in values.items()
    ]


def _replace_table(path: Path, table: str) -> None:
    """Put the table between its two marks.

    Raises:
        ValueError: The marks are missing.
    """
    before, start, rest = path.read_text().partition(_TABLE_START)
    _, end, after = rest.partition(_TABLE_END)
    if not start or not end:
        raise ValueError(
            f"{path} has no place for the table: add the lines {_TABLE_START} and {_TABLE_END}"
        )
    path.write_text(f"{before}{start}\n\n{table}\n{end}{after}")
