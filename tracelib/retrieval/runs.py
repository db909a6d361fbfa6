"""What an evaluation leaves on disk: run files, the table of M-BEIR, results with provenance."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from tracelib.retrieval.columns import TASK_NAMES, canonical_place, read_task_id
from tracelib.retrieval.whole_files import write_whole as write_whole

_TSV_HEADER = "TaskID\tTask\tDataset\tSplit\tMetric\tCandPool\tValue\tUnionPool\tUnionValue\n"
_PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "datasets", "tracelib")
_ALL = "all"


@dataclass(frozen=True)
class ResultRow:
    """One number of an evaluation.

    Args:
        run: Name of the model or experiment.
        gate: The rule that decided which queries think, e.g. `never`.
        column: The benchmark column, e.g. `cirr_task7`, or `all` for the mean over columns.
        pool: `local` or `union`.
        subset: The queries counted, `all` for every query of the column.
        metric: What was measured, e.g. `recall@5`.
        value: The number; recall is a fraction, not percent.
    """

    run: str
    gate: str
    column: str
    pool: str
    subset: str
    metric: str
    value: float


def mean_over_columns(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Return one row of column `all` per (run, gate, pool, subset, metric): the plain mean.

    Columns weigh the same however many queries they have. For M-BEIR's headline, whose depth
    differs by column, pass each column's headline number under one metric name.

    Raises:
        ValueError: A column appears twice in a group, or is already a mean.
    """
    groups: dict[ResultRow, dict[str, float]] = {}
    for row in rows:
        key = dataclasses.replace(row, column=_ALL, value=0.0)
        columns = groups.setdefault(key, {})
        if row.column in (_ALL, *columns):
            raise ValueError(f"{row} would count twice in a mean; pass each column once, no means")
        columns[row.column] = row.value
    means = {key: math.fsum(columns.values()) / len(columns) for key, columns in groups.items()}
    return [dataclasses.replace(key, value=mean) for key, mean in means.items()]


def write_run_file(
    path: Path,
    query_ids: Sequence[str],
    ranked_candidate_ids: Sequence[Sequence[str]],
    scores: Tensor,
    task_id: int,
) -> None:
    """Write the rankings of one column, a line each: `qid Q0 did rank score run_id task_id`.

    Args:
        path: File whose name ends in `_run.txt`; what comes before is the run id.
        query_ids: Q ids.
        ranked_candidate_ids: Candidate ids per query, best first, `[Q, K]`.
        scores: `[Q, K]` cosines, printed as the shortest decimal that is the same float32.
        task_id: M-BEIR task of the column, 0 .. 8.

    Raises:
        ValueError: The file name or the shapes do not fit.
    """
    run_id = path.name.removesuffix("_run.txt")
    if run_id == path.name:
        raise ValueError(f"run file {path.name!r} must be named <run id>_run.txt")
    lengths = [len(ids) for ids in ranked_candidate_ids]
    if len(scores) != len(query_ids) or lengths != [scores.shape[1]] * len(query_ids):
        raise ValueError(
            f"{path.name}: {len(query_ids)} query ids, {len(lengths)} rankings of length "
            f"{sorted(set(lengths))} and scores {tuple(scores.shape)} do not fit"
        )
    text = ""
    rankings = zip(query_ids, ranked_candidate_ids, scores.float().cpu().numpy(), strict=True)
    for query_id, ids, values in rankings:
        for rank, (candidate_id, score) in enumerate(zip(ids, values, strict=True), start=1):
            text += f"{query_id} Q0 {candidate_id} {rank} {score!s} {run_id} {task_id}\n"
    write_whole(path, text)


def write_results_tsv(path: Path, rows: Sequence[ResultRow], split: str) -> None:
    """Write the recall of whole columns as UniIR's table, local and union pool side by side.

    Unlike UniIR's, a metric measured on one pool only keeps its line, the other pool's cells left
    empty. Means, other subsets and other metrics have no place in this format and are left out.

    Args:
        path: The file to write.
        rows: Rows of one run and gate; sorted here by task, then by M-BEIR's order of columns.
        split: `val` or `test`.

    Raises:
        ValueError: Several runs or gates, a number given twice, an unknown pool or task.
    """
    series = {(row.run, row.gate) for row in rows}
    if len(series) > 1:
        raise ValueError(f"{path.name} holds one run and gate, got {sorted(series)}")
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.column == _ALL or row.subset != _ALL or not row.metric.startswith("recall@"):
            continue
        pools = values.setdefault((row.column, row.metric), {})
        if row.pool in pools or row.pool not in ("local", "union"):
            raise ValueError(f"{path.name}: {row} is given twice, or its pool has no place here")
        pools[row.pool] = row.value
    text = _TSV_HEADER
    order = {name: (read_task_id(name), canonical_place(name)) for name, _ in values}
    for column, metric in sorted(values, key=lambda key: order[key[0]]):
        task_id, pools = read_task_id(column), values[column, metric]
        cells = [str(task_id), TASK_NAMES[task_id], column, split, metric.capitalize()]
        local = f"{column}_{split}" if column.startswith("mscoco_") else column
        for pool, name in (("local", local), ("union", "union")):
            cells += [name, f"{pools[pool]:.4f}"] if pool in pools else ["", ""]
        text += "\t".join(cells) + "\n"
    write_whole(path, text)


def collect_provenance(
    config: Mapping[str, Any], data_hashes: Mapping[str, str], prompt_policy: str, dtype: str
) -> dict[str, Any]:
    """Return what it takes to tell whether two results are comparable, free of the host's names.

    Args:
        config: The resolved recipe; absolute paths in it are cut to their last part.
        data_hashes: Digest per data file, by its path relative to the data root.
        prompt_policy: How instructions were chosen, e.g. `first`.
        dtype: Float type of the forward pass.
    """
    revision, is_dirty = read_git_state(Path(__file__).parents[1])
    python = {"python": platform.python_version()}
    return {
        "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": revision,
        "git_dirty": is_dirty,
        "versions": python | {name: _read_version(name) for name in _PACKAGES},
        "prompt_policy": prompt_policy,
        "dtype": dtype,
        "data_hashes": dict(data_hashes),
        "config": _cut_paths(config),
    }


def read_git_state(package: Path) -> tuple[str | None, bool | None]:
    """Return a package's revision and whether its files differ from it; None where git is not used.

    A package that git does not track has none, even when it is installed inside a checkout.
    """
    outputs = []
    for command in ("ls-files --error-unmatch __init__.py", "rev-parse HEAD", "status -s -- ."):
        call = ["git", *command.split()]
        try:
            done = subprocess.run(call, cwd=package, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError):
            return None, None
        outputs.append(done.stdout.strip())
    return outputs[1], bool(outputs[2])


def write_results(path: Path, rows: Sequence[ResultRow], provenance: Mapping[str, Any]) -> None:
    """Write result rows and their provenance as json.

    Raises:
        ValueError: A value is not finite.
    """
    undefined = [row for row in rows if not math.isfinite(row.value)]
    if undefined:
        raise ValueError(f"{path.name}: {undefined[0]} is not finite; leave it out")
    content = {"provenance": provenance, "rows": [dataclasses.asdict(row) for row in rows]}
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_results(path: Path) -> tuple[list[ResultRow], dict[str, Any]]:
    """Return the rows and the provenance that `write_results` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [ResultRow(**row) for row in content["rows"]], content["provenance"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no results file of write_results: {error}") from error


def _read_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cut_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _cut_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut_paths(item) for item in value]
    if isinstance(value, (str, os.PathLike)):
        text = str(os.fspath(value))
        return PurePath(text).name if text[:1] in ("/", "~") else text
    return value
