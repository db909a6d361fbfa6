"""What one evaluation leaves in its folder: results, tables, run files, a row per query."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tracelib.callbacks.embedding_session import EmbeddingSession
from tracelib.callbacks.stored_evaluation import Evaluation
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.evaluation_set import EvaluationSet
from tracelib.retrieval.evaluation import RECALL_KS, Ranking, Thoughts
from tracelib.retrieval.per_query import collect_per_query, write_per_query
from tracelib.retrieval.protocol import Protocol
from tracelib.retrieval.published import render_published_table
from tracelib.retrieval.runs import (
    collect_provenance,
    write_results,
    write_results_tsv,
    write_run_file,
    write_whole,
)


def describe_evaluation(
    data: MBEIRDataModule, split: str, config: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
    """Return the provenance of an evaluation: protocol, recipe, versions, hashes of all files."""
    hashes = data.reader.file_hashes(split)
    protocol = Protocol(
        split=split,
        prompt_policy=data.prompt_policy,
        prompt_seed=data.seed if data.prompt_policy == "random" else None,
        ks=RECALL_KS,
        search_depth=max(RECALL_KS),
        data_hashes=hashes,
    )
    provenance = collect_provenance(config, hashes, data.prompt_policy, dtype)
    return provenance | protocol.to_provenance()


def write_evaluation(folder: Path, evaluation: Evaluation, provenance: Mapping[str, Any]) -> None:
    """Write results.json, results.tsv, table.md, per_query.parquet and run_files/.

    Args:
        folder: The evaluation's own folder.
        evaluation: What was found, of one run and gate.
        provenance: Of `describe_evaluation`.
    """
    found, rows = evaluation.evaluation_set, evaluation.rows
    per_query = collect_per_query(
        found.queries.query_ids, evaluation.facts, evaluation.thoughts, evaluation.rankings
    )
    write_per_query(folder / "per_query.parquet", per_query)
    split = str(provenance["split"])
    for column in found.query_spans:
        for pool, ranking in evaluation.rankings.items():
            _write_run_files(folder / "run_files", column, pool, split, found, ranking)
    write_results_tsv(folder / "results.tsv", rows, split)
    write_whole(folder / "table.md", render_published_table(rows, split))
    write_results(folder / "results.json", rows, {"gate": rows[0].gate, **provenance})


def write_rationales(
    path: Path, session: EmbeddingSession, thoughts: Thoughts, data: MBEIRDataModule
) -> None:
    """Write what each query wrote before its embedding token, a JSON object a line."""
    decode, queries = data.processor.tokenizer.decode, session.found.queries
    lines = [
        {"query_id": query_id, "column": column, "thinks": thinks, "rationale": decode(list(ids))}
        for query_id, column, thinks, ids in zip(
            queries.query_ids,
            queries.columns,
            thoughts.thinks.tolist(),
            thoughts.rationale_token_ids,
            strict=True,
        )
    ]
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _write_run_files(
    folder: Path, column: str, pool: str, split: str, found: EvaluationSet, ranking: Ranking
) -> None:
    """Write a column's rankings in M-BEIR's format, a file per prompt where all were asked.

    A shallow pool is listed whole.
    """
    span, kind = found.query_spans[column], "single" if pool == "local" else pool
    numbers = found.queries.prompt_numbers[span.start : span.stop]
    for number in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == number) + span.start
        places = ranking.places[rows]
        depth = int((places >= 0).sum(1).max())
        prompt = f"_prompt{number}" if number else ""
        write_run_file(
            folder / f"mbeir_{column}_{kind}_pool_{split}_k{depth}{prompt}_run.txt",
            [found.queries.query_ids[row] for row in rows.tolist()],
            found.candidates.format_ids(places[:, :depth].numpy()),
            ranking.scores[rows, :depth],
            int(found.queries.task_ids[span.start]),
        )
