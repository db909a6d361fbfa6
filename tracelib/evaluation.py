"""The `evaluate` verb: a fitted run under every gate, beside another run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from tracelib.callbacks.evaluation_report import describe_evaluation, write_evaluation
from tracelib.callbacks.gate_embedding import SplitEmbedder
from tracelib.callbacks.stored_evaluation import Evaluation, evaluate_session
from tracelib.fitted_run import (
    AT_A_HALF,
    HeadOptions,
    LoadedRun,
    choose_gates,
    is_thinking,
    load_split,
)
from tracelib.models.gates import AlwaysGate, Gate, HeadGate
from tracelib.recipe import find_runs, read_recipe
from tracelib.retrieval.runs import ResultRow, write_results, write_whole
from tracelib.retrieval.tables import build_table, render_markdown
from tracelib.routing_report import judge_thoughts, report_routing

_TABLE_WIDTH = 136
_TABLE_START, _TABLE_END = "<!-- table -->", "<!-- /table -->"


def evaluate(
    run: Path | None = None,
    against: Path | None = None,
    runs_folder: Path = Path("runs"),
    split: Literal["val", "test"] = "test",
    table_in: Path | None = None,
    store_dir: Path | None = None,
    gate: HeadOptions = AT_A_HALF,
) -> None:
    """Evaluate a fitted run under every gate, beside another run, and print one table.

    The gates are never, always, first_token, head and task_prior; a run trained without rationales
    has never alone, one without a router no head. RUN/evaluation/ (RUN/evaluation_val/ for val)
    gets results.json (provenance and tidy rows of both runs) and table.md; below it each gate of
    a run has its own results.json, results.tsv, table.md, run files and a row per query, which
    `compare` reads. Embeddings are kept: interrupted, the verb goes on where it was. Queries/s is
    the time of embedding the queries, without reading files, where none was kept from before.
    think_curve.json has the recall of each gate's order of queries by think rate, with pictures
    beside it and in TensorBoard; the head uses the run's calibration.json where there is one.

    Args:
        run: Folder of the run, which holds config.yaml; default is the newest run that was trained
            to think.
        against: Run to show beside it; default is the newest run that was not.
        runs_folder: Where runs are looked for.
        split: Split to evaluate.
        table_in: Markdown file whose part between `<!-- table -->` and `<!-- /table -->` becomes
            the table.
        store_dir: Where embeddings are kept; default is `embeddings` in `runs_folder`.
        gate: When the head gate thinks.

    Raises:
        FileNotFoundError: No finished run is found.
        ValueError: The two runs are of different data, or the head cannot do what is asked.
    """
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    newest = list(reversed(find_runs(runs_folder)))
    run = (
        run
        or next((path for path in newest if is_thinking(path)), None)
        or next(iter(newest), None)
    )
    if run is None:
        raise FileNotFoundError(
            f"{runs_folder} holds no finished run: fit one (make quickstart) or name one (--run)"
        )
    against = against or next((path for path in newest if _is_counterpart(path, run)), None)
    folders = [path for path in (run, against) if path is not None]
    runs = [load_split(f, split, n) for n, f in zip(_name_runs(folders), folders, strict=True)]
    hashes = [loaded.data.reader.file_hashes(split) for loaded in runs]
    if hashes[0] != hashes[-1]:
        raise ValueError(f"{run} and {against} were not fitted on the same data; name another run")
    store_dir = store_dir or runs_folder / "embeddings"
    gates = [choose_gates(loaded, gate) for loaded in runs]
    if gate.given and not any(isinstance(found, HeadGate) for found in gates[0]):
        raise ValueError(f"--gate asks for {gate.given}, but {run} was trained without a router")
    rows = [
        row
        for loaded, found in zip(runs, gates, strict=True)
        for row in _evaluate_run(loaded, found, store_dir, console)
    ]
    folder = runs[0].evaluation_folder
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


def _is_counterpart(path: Path, run: Path) -> bool:
    """Whether one of two runs on the same data and backbone thinks and the other does not."""
    ours, theirs = read_recipe(run), read_recipe(path)
    backbones = [r["model"]["encoder"]["init_args"].get("backbone") for r in (ours, theirs)]
    same_data = ours["data"]["root"] == theirs["data"]["root"]
    return same_data and backbones[0] == backbones[1] and is_thinking(path) != is_thinking(run)


def _name_runs(folders: list[Path]) -> list[str]:
    """Return recipe names, the folders above `version_N`; with N where two runs share one."""
    names = [f.parent.name if f.name.startswith("version_") else f.name for f in folders]
    if len(set(names)) < len(names):
        return [f"{folder.parent.name}/{folder.name}" for folder in folders]
    return names


def _evaluate_run(
    loaded: LoadedRun, gates: list[Gate], store_dir: Path, console: Console
) -> list[ResultRow]:
    """Embed what is not stored yet, rank, write each gate's files, return all rows."""
    module, data, split = loaded.module, loaded.data, loaded.split
    embedder = SplitEmbedder(loaded.name, module, data, split, console)
    sessions = embedder.open_sessions(gates, store_dir, loaded.fingerprint)
    embedder.embed_candidates(sessions[0])
    seconds = embedder.embed_queries(gates, sessions)
    provenance = describe_evaluation(data, split, loaded.config, str(module.encoder.dtype))
    found: dict[str, Evaluation] = {}
    for gate, session in zip(gates, sessions, strict=True):
        evaluation = evaluate_session(
            session, loaded.name, gate.name, seconds[gate.name], module.device
        )
        if num_forced := int(evaluation.thoughts.is_forced.sum()):
            console.print(f"{gate.name}: {num_forced} thoughts reached the limit; token appended")
        evaluation.rows.extend(judge_thoughts(loaded, gate.name, evaluation))
        settings = provenance | {"gate_settings": gate.describe()}
        write_evaluation(loaded.evaluation_folder / gate.name, evaluation, settings)
        found[gate.name] = evaluation
    if AlwaysGate.name in found:
        report_routing(loaded, found, provenance)
    return [row for evaluation in found.values() for row in evaluation.rows]


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
