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

from tracelib.callbacks.retrieval_evaluation import EmbeddingCollector, build_facts
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.datasets import EvaluationSet
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
from tracelib.retrieval.evaluation import (
    QueryFacts,
    Ranking,
    Thoughts,
    describe_shallow_pools,
    rank_pools,
    tabulate,
)
from tracelib.retrieval.runs import (
    ResultRow,
    collect_provenance,
    write_results,
    write_results_tsv,
    write_run_file,
)
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
) -> None:
    """Evaluate a fitted run under every gate, beside another run, and print one table.

    The gates are never, always, first_token, head and task_prior; a run trained without rationales
    has never alone, one without a router no head. Writes results.json (provenance and tidy
    rows), results.tsv, table.md and run files to RUN/evaluation/, or RUN/evaluation_val/.
    Queries/s is the time of embedding the queries, without reading files.

    Args:
        run: Folder of the run, which holds config.yaml; default is the newest run that was trained
            to think.
        against: Run to show beside it; default is the newest run that was not.
        runs_folder: Where runs are looked for.
        split: Split to evaluate.
        table_in: Markdown file whose part between `<!-- table -->` and `<!-- /table -->` becomes
            the table.

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
    runs = [_load(*pair) for pair in zip(_name_runs(folders), folders, strict=True)]
    folder = runs[0].folder / ("evaluation" if split == "test" else f"evaluation_{split}")
    hashes = [loaded.data.reader.file_hashes(split) for loaded in runs]
    if hashes[0] != hashes[-1]:
        raise ValueError(f"{run} and {against} were not fitted on the same data; name another run")
    rows = [row for loaded in runs for row in _evaluate_run(loaded, split, folder, console)]
    provenance = {"split": split} | collect_provenance(
        config={loaded.name: loaded.config for loaded in runs},
        data_hashes=hashes[0],
        prompt_policy=runs[0].data.prompt_policy,
        dtype=str(runs[0].module.encoder.dtype),
    )
    write_results(folder / "results.json", rows, provenance)
    main_gate = runs[0].module.gate.name
    write_results_tsv(
        folder / "results.tsv",
        [r for r in rows if r.run == runs[0].name and r.gate == main_gate],
        split,
    )
    (folder / "table.md").write_text(render_markdown(rows))
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


def _load(name: str, folder: Path) -> _LoadedRun:
    module, data, config = load_run(folder)
    data.setup("validate")
    data.setup("test")
    return _LoadedRun(
        name, folder, module.to("cuda" if torch.cuda.is_available() else "cpu"), data, config
    )


def _evaluate_run(
    loaded: _LoadedRun, split: str, folder: Path, console: Console
) -> list[ResultRow]:
    """Embed the candidates once and the queries under each gate; write run files, return rows."""
    loaded.module.encoder.merge_lora()
    found = loaded.data.evaluation_sets[split]
    query_loader, candidate_loader = loaded.data.build_evaluation_loaders(split)
    gates = GATES if _is_thinking(loaded.folder) else (NeverGate(),)
    if loaded.module.router is None:
        gates = tuple(gate for gate in gates if not isinstance(gate, HeadGate))
    facts = build_facts(found)
    collectors = {gate.name: EmbeddingCollector() for gate in gates}
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, torch.no_grad():
        shared = EmbeddingCollector()
        for batch in progress.track(candidate_loader, description=f"{loaded.name}: candidates"):
            batch.inputs = batch.inputs.to(loaded.module.device)
            shared.add_candidates(batch, loaded.module.embed_candidates(batch))
        for batch in progress.track(query_loader, description=f"{loaded.name}: queries"):
            batch.inputs = batch.inputs.to(loaded.module.device)
            batch.task_ids = batch.task_ids.to(loaded.module.device)
            for gate in gates:
                start = time.perf_counter()
                output = loaded.module.embed_queries(batch, gate)
                collectors[gate.name].seconds += time.perf_counter() - start
                collectors[gate.name].add_queries(batch, output)
    if shallow := describe_shallow_pools(found.pools):
        console.print(shallow)
    rows: list[ResultRow] = []
    for gate in gates:
        collectors[gate.name].candidates = shared.candidates
        thoughts, candidates = collectors[gate.name].collect(
            len(found.queries), len(found.candidates)
        )
        if num_forced := int(thoughts.is_forced.sum()):
            console.print(f"{gate.name}: {num_forced} thoughts reached the limit; token appended")
        rankings = rank_pools(thoughts.embeddings, candidates, facts, found.pools)
        rows += tabulate(loaded.name, gate.name, facts, thoughts, rankings)
        rows += _judge_thoughts(loaded, gate.name, found, facts, thoughts)
        _write_run_files(
            folder / "run_files" / loaded.name / gate.name, split, found, facts, rankings
        )
    return rows


def _judge_thoughts(
    loaded: _LoadedRun, gate: str, found: EvaluationSet, facts: QueryFacts, thoughts: Thoughts
) -> list[ResultRow]:
    """Return what is said of the thoughts and the router over all queries together."""
    decode = loaded.data.processor.tokenizer.decode
    written = [
        q.rationale and decode(list(ids)) == q.rationale.text
        for q, ids in zip(found.queries, thoughts.rationale_token_ids, strict=True)
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
    known = facts.difficulty >= 0
    if gate == "head" and known.any():
        probability, difficulty = thoughts.think_probability[known].cpu(), facts.difficulty[known]
        values["all", "router_auroc"] = binary_auroc(probability, difficulty)
        values["all", "router_ece"] = binary_calibration_error(probability, difficulty)
    return [
        ResultRow(loaded.name, gate, "all", "local", s, m, v.item()) for (s, m), v in values.items()
    ]


def _write_run_files(
    folder: Path, split: str, found: EvaluationSet, facts: QueryFacts, rankings: dict[str, Ranking]
) -> None:
    for column in found.pools:
        places = facts.select(column, "all")
        queries = [found.queries[i] for i in places.tolist()]
        for pool, ranking in rankings.items():
            ranked = [
                [found.candidates[p].candidate_id for p in row if p >= 0]
                for row in ranking.places[places].tolist()
            ]
            kind = "single" if pool == "local" else pool
            stem = f"mbeir_{column}_{kind}_pool_{split}_k{len(ranked[0])}"
            scores = ranking.scores[places, : len(ranked[0])]
            ids = [q.query_id for q in queries]
            write_run_file(folder / f"{stem}_run.txt", ids, ranked, scores, queries[0].task_id)


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
