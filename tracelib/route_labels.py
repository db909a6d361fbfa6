"""The `route-labels` verb: which queries a fitted run serves better with a thought of its own.

Shapes: Q queries, S thoughts of each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
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
from rich.table import Table
from torch import Tensor

from tracelib.callbacks.embedding_session import EmbeddingSession, build_keys
from tracelib.callbacks.stored_evaluation import CHUNK_SIZE, build_facts
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.jsonl import write_rows
from tracelib.data.rationales import RationaleRow
from tracelib.data.table_cache import hash_file
from tracelib.metrics.ranking import RaggedIds
from tracelib.metrics.utility import (
    Standing,
    UtilityRule,
    compute_utility,
    summarize_labels,
)
from tracelib.models.engine import EngineOutput
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.models.sampling import Sampling
from tracelib.module import RetrievalModule
from tracelib.recipe import load_run
from tracelib.retrieval.positive_ranks import find_standing
from tracelib.retrieval.runs import collect_provenance, write_whole
from tracelib.types import QueryBatch

_NUM_DIGITS = 6


def route_labels(
    run: Path,
    output: Path | None = None,
    split: Literal["train", "val"] = "train",
    num_samples: int = 1,
    temperature: float = 0.0,
    cost_weight: float = 0.0,
    margin_epsilon: float = 0.05,
    target_temperature: float = 1.0,
    store_dir: Path = Path("runs", "embeddings"),
) -> None:
    """Label queries by whether a fitted run's own thought ranks their positive higher.

    Of the train split it labels the queries that the fit held out (data.held_out), in the train
    pool; of the val split all, each in its local pool. Every query is embedded directly and after
    the model's own thought. Its label is 1 where the thought lifts the first positive, or widens
    its margin at the same rank; -1 where it is first either way by the same margin; else 0.

    The output gets a rationale row per query, with ranks, utilities and a soft target; beside it a
    .json gets the summary and all the labels depend on. Fit another run with --data.route_labels
    to train its router on the rows. Embeddings are kept: interrupted, the verb goes on where it
    was.

    Args:
        run: Folder of the run, which holds config.yaml.
        output: File for the rows, .jsonl; default is route_labels.jsonl in the run, for the val
            split route_labels_val.jsonl.
        split: Split to label.
        num_samples: Thoughts per query, whose utilities are averaged; more than one needs a
            temperature. The rows have the first one's text.
        temperature: Temperature of the thoughts' tokens; 0 writes the most likely ones.
        cost_weight: Gain in log2 of the rank that one token of a thought has to bring, >= 0.
        margin_epsilon: Least change of the margin that counts, in cosine, >= 0.
        target_temperature: T of the soft target sigmoid((gain - cost) / T), above 0.
        store_dir: Where embeddings are kept.

    Raises:
        FileNotFoundError: The run is not finished.
        ValueError: The run held no query out or writes no thoughts, or an option is out of its
            range.
    """
    rule = UtilityRule(cost_weight, margin_epsilon, target_temperature)
    sampling = Sampling(temperature, num_samples)
    output = output or run / f"route_labels{'' if split == 'train' else f'_{split}'}.jsonl"
    if output.suffix != ".jsonl":
        raise ValueError(f"output is {output}, must end in .jsonl; its .json goes beside it")
    module, data, config = _load(run, split)
    sampling = dataclasses.replace(sampling, seed=data.seed)
    fingerprint = module.compute_fingerprint()
    module.encoder.merge_lora()
    sessions = _open_sessions(module, data, split, fingerprint, sampling, store_dir)
    console = Console()
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        _embed(module, data, split, sessions, sampling, progress)
        standings = _find_standings(sessions, module.device, progress)
    name = run.parent.name if run.name.startswith("version_") else run.name
    writer = f"{name} {fingerprint[:12]}"
    summary = _write_labels(output, rule, sessions, standings, split, data, writer)
    provenance = collect_provenance(
        config,
        data.reader.file_hashes(split),
        _get_prompt_policy(data, split),
        str(module.encoder.dtype),
    )
    made = {"split": split, "weights": fingerprint, "rows_sha256": hash_file(output)}
    made |= {"sampling": dataclasses.asdict(sampling), "rule": dataclasses.asdict(rule)}
    content = {"provenance": provenance | made, "summary": summary}
    write_whole(output.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    console.print(_build_table(summary))
    console.print(f"{summary['num_queries']} rows: {output}", soft_wrap=True)


def _load(
    run: Path, split: Literal["train", "val"]
) -> tuple[RetrievalModule, MBEIRDataModule, dict[str, Any]]:
    """Return a run with the split to label, and its recipe.

    Raises:
        ValueError: There is nothing to label or nobody who thinks.
    """
    module, data, config = load_run(run)
    data.seed = int(config["seed_everything"])  # chooses what a fit of this recipe holds out
    if data.rationale == "none":
        raise ValueError(
            f"{run} was fitted without rationales (data.rationale none) and writes no thoughts: "
            "name a run that was fitted with them"
        )
    if split == "train" and not data.held_out:
        raise ValueError(
            f"{run} was fitted on all training queries (data.held_out 0), so none is left to judge "
            "it on: fit it with --data.held_out=0.2, or label the val queries with --split=val"
        )
    if split == "val" and data.prompt_policy == "all":
        raise ValueError(
            f"{run} asks val queries under each prompt (data.prompt_policy all), but a query has "
            "one label: fit with data.prompt_policy fixed, or label with --split=train"
        )
    if split == "train":
        data.set_up_held_out()
    else:
        data.setup("validate")
    return module.to("cuda" if torch.cuda.is_available() else "cpu"), data, config


def _get_prompt_policy(data: MBEIRDataModule, split: str) -> str:
    return "random" if split == "train" else data.prompt_policy


def _open_sessions(
    module: RetrievalModule,
    data: MBEIRDataModule,
    split: str,
    fingerprint: str,
    sampling: Sampling,
    store_dir: Path,
) -> list[EmbeddingSession]:
    """Return the stores of the direct embeddings and of each sample's; candidates are shared.

    Those of the val split without sampling are those of `evaluate`.
    """
    chosen: dict[str, Any] = {"prompt_policy": _get_prompt_policy(data, split)}
    if split == "train":
        chosen |= {"held_out": data.held_out, "train_file": data.train_file}
    if chosen["prompt_policy"] == "random":
        chosen["seed"] = data.seed
    sessions = []
    for number in range(1 + sampling.num_samples):
        gate = AlwaysGate() if number else NeverGate()
        keys = build_keys(module, data, gate, fingerprint, "merged")
        drawn: dict[str, Any] = {}
        if number and sampling.temperature:
            drawn = {"temperature": sampling.temperature, "draw": [sampling.seed, number]}
        keys = dataclasses.replace(keys, query=keys.query | chosen | drawn)
        size = module.encoder.hidden_size
        sessions.append(EmbeddingSession(data, split, store_dir, keys, size))
    return sessions


@torch.no_grad()
def _embed(
    module: RetrievalModule,
    data: MBEIRDataModule,
    split: str,
    sessions: list[EmbeddingSession],
    sampling: Sampling,
    progress: Progress,
) -> None:
    """Store what is missing, each query's direct embedding and all its thoughts at once."""
    plans = [session.plan_batches() for session in sessions]
    pending = {
        tuple(batch)
        for session, (queries, _) in zip(sessions, plans, strict=True)
        for batch in queries
        if session.queries.list_open_shards()
    }
    queries = [list(batch) for batch in sorted(pending, key=lambda batch: batch[0])]
    candidates = plans[0][1] if sessions[0].candidates.list_open_shards() else []
    query_loader, candidate_loader = data.build_evaluation_loaders(split, queries, candidates)
    for batch in progress.track(candidate_loader, description="candidates"):
        batch.inputs = batch.inputs.to(module.device)
        sessions[0].write_candidates(batch, module.embed_candidates(batch))
    for batch in progress.track(query_loader, description="queries"):
        outputs = _think(module, batch, sampling)
        for session, output in zip(sessions, outputs, strict=True):
            session.write_queries(batch, output)
    for session in sessions:
        session.finish()


def _think(module: RetrievalModule, batch: QueryBatch, sampling: Sampling) -> list[EngineOutput]:
    """Return what becomes of a batch directly, and with each sample of a thought."""
    prior = module.get_task_prior(batch.task_ids.to(module.device))
    output = module.engine.embed_queries(
        batch.inputs, AlwaysGate(), prior, batch.query_ids, sampling
    )
    num = sampling.num_samples
    samples = [
        EngineOutput(**{name: value[first::num] for name, value in vars(output).items()})
        for first in range(num)
    ]
    if module.encoder.read_offset != -1:  # the embedding token has to be read as well
        return [module.embed_queries(batch, NeverGate()), *samples]
    nobody = torch.zeros_like(samples[0].thinks)
    direct = dataclasses.replace(
        samples[0],
        embeddings=samples[0].direct_embeddings,
        thinks=nobody,
        is_forced=nobody,
        rationale_token_ids=[[] for _ in nobody],
    )
    return [direct, *samples]


def _find_standings(
    sessions: list[EmbeddingSession], device: torch.device, progress: Progress
) -> list[Standing]:
    """Return each session's ranks and margins `[Q]` in the queries' own pools."""
    found, positives = sessions[0].found, build_facts(sessions[0].found).positives
    task = progress.add_task("ranks", total=2 * len(sessions) * len(found.candidates))

    def track(column: str) -> Iterator[tuple[int, Tensor]]:
        for place, rows in sessions[0].iterate_candidates(column, CHUNK_SIZE):
            yield place, rows
            progress.advance(task, len(rows))

    def iterate_columns(session: EmbeddingSession) -> Iterator[Standing]:
        queries = session.read_query_embeddings()
        for column, span in found.query_spans.items():
            bounds = positives.offsets[span.start : span.stop + 1]
            own = RaggedIds(bounds - bounds[0], positives.ids[bounds[0] : bounds[-1]])
            rows = queries[span.start : span.stop].to(device)
            yield find_standing(rows, own, partial(track, column))

    return [_join(iterate_columns(session)) for session in sessions]


def _join(parts: Iterable[Standing]) -> Standing:
    ranks, margins = zip(*((part.rank, part.margin) for part in parts), strict=True)
    return Standing(torch.cat(ranks), torch.cat(margins))


def _write_labels(
    path: Path,
    rule: UtilityRule,
    sessions: list[EmbeddingSession],
    standings: list[Standing],
    split: str,
    data: MBEIRDataModule,
    writer: str,
) -> dict[str, Any]:
    """Write a row per query; return the summary."""
    direct, *thoughts = standings
    queries, written = sessions[0].found.queries, [s.read_thoughts(None) for s in sessions[1:]]
    ranks = torch.stack([standing.rank for standing in thoughts])
    thought = Standing(ranks, torch.stack([standing.margin for standing in thoughts]))
    # The embedding token is no cost of thinking: a direct query has it too.
    num_tokens = torch.stack([some.num_tokens - 1 for some in written])
    utility = compute_utility(direct, thought, num_tokens)
    labels, targets = rule.label(utility), rule.compute_soft_target(utility)
    columns: Mapping[str, list[Any]] = {
        "rank_utility": _list_numbers(utility.rank_utility),
        "margin_utility": _list_numbers(utility.margin_utility),
        "soft_target": _list_numbers(targets),
        "num_tokens": _list_numbers(utility.num_tokens),
        "rank_direct": direct.rank.tolist(),
        "ranks_thought": ranks.T.tolist(),
    }
    rows = zip(
        queries.query_ids,
        queries.task_ids.tolist(),
        labels.tolist(),
        written[0].rationale_token_ids,
        zip(*columns.values(), strict=True),
        strict=True,
    )

    def format_rows() -> Iterator[dict[str, Any]]:
        for query_id, task_id, label, ids, values in rows:
            text = data.processor.tokenizer.decode(list(ids)).strip() or None
            row = RationaleRow(query_id, task_id, label, text, None, None, "self", writer)
            yield row.format_fields() | {"split": split} | dict(zip(columns, values, strict=True))

    write_rows(path, format_rows())
    summary = summarize_labels(labels, torch.from_numpy(queries.difficulty), utility)
    is_forced = torch.cat([some.is_forced for some in written])
    return summary | {"forced_emb_token_rate": is_forced.double().mean().item()}


def _list_numbers(values: Tensor) -> list[float | None]:
    """Return numbers of few digits, None for NaN, which JSON does not know."""
    return [None if value != value else round(value, _NUM_DIGITS) for value in values.tolist()]


def _build_table(summary: Mapping[str, Any]) -> Table:
    """Return the table that is printed: annotated difficulty by label."""
    table = Table(title=f"labels of {summary['num_queries']} queries")
    for name in ("annotated", "think (1)", "direct (0)", "either (-1)", "mean rank utility"):
        table.add_column(name, justify="left" if name == "annotated" else "right")
    for name, row in summary["annotated"].items():
        counts = [str(row[label]) for label in ("think", "direct", "either")]
        mean = row["mean_rank_utility"]
        table.add_row(name, *counts, "" if mean is None else f"{mean:+.3f}")
    shares = [f"{summary[f'{label}_share']:.1%}" for label in ("think", "direct", "either")]
    table.add_row("share", *shares, "")
    return table
