"""The `route-labels` verb: which queries a fitted run serves better with a thought of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
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

from tracelib.callbacks.thought_sessions import ThoughtSessions
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.jsonl import write_rows
from tracelib.data.rationales import RationaleRow
from tracelib.data.table_cache import hash_file
from tracelib.metrics.utility import (
    Standing,
    UtilityRule,
    compute_utility,
    summarize_labels,
)
from tracelib.models.sampling import Sampling
from tracelib.module import RetrievalModule
from tracelib.recipe import load_run
from tracelib.retrieval.runs import collect_provenance, write_whole

_NUM_DIGITS = 6


def route_labels(
    run: Path,
    output: Path | None = None,
    split: Literal["train", "val"] = "train",
    share: float | None = None,
    num_samples: int = 1,
    temperature: float = 0.0,
    cost_weight: float = 0.0,
    margin_epsilon: float = 0.05,
    target_temperature: float = 1.0,
    store_dir: Path = Path("runs", "embeddings"),
) -> None:
    """Label queries by whether a fitted run's own thought ranks their positive higher.

    Of the train split it labels the queries that the fit held out (data.held_out), or a share that
    may reach beyond them, in the train pool; of the val split all, each in its local pool. Every
    query is embedded directly and after the model's own thought. Its label is 1 where the thought
    lifts the first positive, or widens its margin at the same rank; -1 where it is first either
    way by the same margin; else 0.

    The output gets a rationale row per query, with ranks, utilities and a soft target; beside it a
    .json gets the summary and all the labels depend on. Fit another run with --data.route_labels
    to train its router on the rows. Embeddings are kept: interrupted, the verb goes on where it
    was.

    Args:
        run: Folder of the run, which holds config.yaml.
        output: File for the rows, .jsonl; default is route_labels.jsonl in the run, for the val
            split route_labels_val.jsonl.
        split: Split to label.
        share: Share of the training queries, 0 .. 1, those held out first; by default just these.
            More are labelled by how they fare in a model that was trained on them: an easy one
            fares better than it will, a hard one was never embedded directly in training.
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
    module, data, config = _load(run, split, share)
    sampling = dataclasses.replace(sampling, seed=data.seed)
    fingerprint = module.compute_fingerprint()
    module.encoder.prepare_inference()
    sessions = ThoughtSessions(module, data, split, store_dir, fingerprint, sampling, share)
    console = Console()
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        sessions.embed(progress)
        direct, thought = sessions.find_standings(progress)
    name = run.parent.name if run.name.startswith("version_") else run.name
    writer = f"{name} {fingerprint[:12]}"
    summary = _write_labels(output, sessions, direct, thought, rule, writer)
    provenance = collect_provenance(
        config, data.reader.file_hashes(split), sessions.prompt_policy, str(module.encoder.dtype)
    )
    provenance |= {
        "split": split,
        "share": share,
        "weights": fingerprint,
        "sampling": dataclasses.asdict(sampling),
        "rule": dataclasses.asdict(rule),
        "rows_sha256": hash_file(output),
    }
    content = {"provenance": provenance, "summary": summary}
    write_whole(output.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    console.print(_build_table(summary))
    console.print(f"{summary['num_queries']} rows: {output}", soft_wrap=True)


def _load(
    run: Path, split: Literal["train", "val"], share: float | None
) -> tuple[RetrievalModule, MBEIRDataModule, dict[str, Any]]:
    """Return a run with the split to label, and its recipe.

    Raises:
        ValueError: There is nothing to label or nobody who thinks.
    """
    module, data, config = load_run(run)
    if data.rationale == "none":
        raise ValueError(
            f"{run} was fitted without rationales (data.rationale none) and writes no thoughts: "
            "name a run that was fitted with them"
        )
    if share is not None and (split != "train" or not 0 < share <= 1):
        raise ValueError(f"share is {share} of the {split} split, allowed is 0 .. 1 of train")
    if split == "train" and share is None and not data.held_out:
        raise ValueError(
            f"{run} was fitted on all training queries (data.held_out 0), so none is left to judge "
            "it on: fit it with --data.held_out=0.2, label the val queries with --split=val, or "
            "those it was trained on with --share=1"
        )
    if split == "val" and data.prompt_policy == "all":
        raise ValueError(
            f"{run} asks val queries under each prompt (data.prompt_policy all), but a query has "
            "one label: fit with data.prompt_policy fixed, or label with --split=train"
        )
    if split == "train":
        data.set_up_training_queries(data.held_out if share is None else share)
    else:
        data.setup("validate")
    return module.to("cuda" if torch.cuda.is_available() else "cpu"), data, config


def _write_labels(
    path: Path,
    sessions: ThoughtSessions,
    direct: Standing,
    thought: Standing,
    rule: UtilityRule,
    writer: str,
) -> dict[str, Any]:
    """Write a row per query; return the summary."""
    queries, tokenizer = sessions.found.queries, sessions.data.processor.tokenizer
    written = [session.read_thoughts(None) for session in sessions.thoughts]
    # The embedding token is no cost of thinking: a direct query has it too.
    num_tokens = torch.stack([thoughts.num_tokens - 1 for thoughts in written])
    utility = compute_utility(direct, thought, num_tokens)
    labels, targets = rule.label(utility), rule.compute_soft_target(utility)
    columns: Mapping[str, list[Any]] = {
        "rank_utility": _list_numbers(utility.rank_utility),
        "margin_utility": _list_numbers(utility.margin_utility),
        "soft_target": _list_numbers(targets),
        "num_tokens": _list_numbers(utility.num_tokens),
        "rank_direct": direct.rank.tolist(),
        "ranks_thought": thought.rank.T.tolist(),
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
            text = str(tokenizer.decode(list(ids))).strip() or None
            row = RationaleRow(query_id, task_id, label, text, None, None, "self", writer)
            more = {"split": queries.split, **dict(zip(columns, values, strict=True))}
            yield row.format_fields() | more

    write_rows(path, format_rows())
    summary = summarize_labels(labels, torch.from_numpy(queries.difficulty), utility)
    is_forced = torch.cat([thoughts.is_forced for thoughts in written])
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
