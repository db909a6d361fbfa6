"""The `calibrate` verb: what a router's probabilities are worth, and which of them meet a budget.

Shape: Q queries of the val split.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from tracelib.callbacks.evaluation_report import describe_evaluation
from tracelib.callbacks.gate_embedding import SplitEmbedder
from tracelib.callbacks.routing_charts import draw_reliability, write_charts
from tracelib.callbacks.stored_evaluation import evaluate_session
from tracelib.data.jsonl import read_rows
from tracelib.data.rationales import parse_rationale
from tracelib.fitted_run import LoadedRun, load_split
from tracelib.metrics.calibration import Method, RouterCalibration, build_calibration
from tracelib.metrics.reliability import bin_probabilities
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.retrieval.evaluation import rank_first_positives
from tracelib.retrieval.whole_files import write_whole
from tracelib.types import QueryBatch

_NUM_TIMED = 1024
_UNKNOWN = -1


def calibrate(
    run: Path,
    method: Method = "temperature",
    labels: Literal["annotated", "utility"] | Path = "annotated",
    store_dir: Path = Path("runs/embeddings"),
) -> None:
    """Fit a run's router to the val split, so that the head gate keeps what it promises.

    Writes RUN/calibration.json, which `evaluate` takes: a rising map from the router's probability
    to how often such queries need thought, the probability from which on each share of queries
    thinks, and the time of a query with thought and without. A reliability diagram goes to
    RUN/calibration/ and TensorBoard. Embeddings are kept, as by `evaluate`.

    Args:
        run: Folder of a run with a router.
        method: `temperature` keeps the order of queries and needs few labels; `isotonic` fits any
            rising map.
        labels: What tells that a query needs thought: `annotated` is the difficulty in the data,
            `utility` that the thought finds the first positive at a better rank of the local pool,
            which costs a pass with all thoughts; or rows of `route-labels` of the val split.
        store_dir: Where embeddings are kept.

    Raises:
        FileNotFoundError: The folder holds no finished run.
        ValueError: The run has no router, or no query a label.
    """
    console = Console()
    loaded = load_split(run, "val", run.name)
    if loaded.module.router is None:
        raise ValueError(f"{run} has no router to calibrate: fit with model.router_weight above 0")
    embedder = SplitEmbedder(loaded.name, loaded.module, loaded.data, loaded.split, console)
    if labels == "utility":
        probability, target = _embed_and_rank(embedder, loaded, store_dir)
    else:
        probability = _embed_prompts(embedder, loaded, store_dir)
        queries = loaded.data.evaluation_sets[loaded.split].queries
        if labels == "annotated":
            target = torch.from_numpy(queries.difficulty).long()
        else:
            target = read_labels(Path(labels), queries.query_ids)
    direct_seconds, thought_seconds = _time_queries(embedder)
    calibration = build_calibration(
        method,
        probability,
        target,
        direct_seconds,
        thought_seconds,
        "annotated" if labels == "annotated" else "utility",
    )
    found = _judge(calibration, probability, target)
    bins = {
        "raw": bin_probabilities(*_select_labelled(probability, target)),
        "calibrated": bin_probabilities(
            *_select_labelled(calibration.calibrate(probability), target)
        ),
    }
    scalars = {name: value for name, value in found.items() if isinstance(value, float)}
    write_charts(
        run / "calibration", run, "val", {"reliability": draw_reliability("val", bins)}, scalars
    )
    content = calibration.to_json() | found | {"weights": loaded.fingerprint}
    if isinstance(labels, Path):
        content["labels_file"] = labels.name
    content["provenance"] = describe_evaluation(
        loaded.data, loaded.split, loaded.config, str(loaded.module.encoder.dtype)
    )
    write_whole(loaded.calibration_file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    _print(console, calibration, found)
    console.print(f"val split; written to {loaded.calibration_file}", soft_wrap=True)


def read_labels(path: Path, query_ids: list[str]) -> Tensor:
    """Return `[Q]` the difficulty that rationale rows give to queries, -1 without a row.

    Raises:
        DataError: A line is no rationale row.
    """
    rows = (parse_rationale(row) for row in read_rows(path))
    difficulty = {row.query_id: row.difficulty for row in rows}
    return torch.tensor([difficulty.get(query_id, _UNKNOWN) for query_id in query_ids])


def _embed_prompts(embedder: SplitEmbedder, loaded: LoadedRun, store_dir: Path) -> Tensor:
    """Return `[Q]` the router's probabilities, which need no thought."""
    gates = [NeverGate()]
    (session,) = embedder.open_sessions(gates, store_dir, loaded.fingerprint)
    embedder.embed_queries(gates, [session])
    session.queries.flush()
    session.queries.fill_repeats()
    return session.read_thoughts(None).think_probability


def _embed_and_rank(
    embedder: SplitEmbedder, loaded: LoadedRun, store_dir: Path
) -> tuple[Tensor, Tensor]:
    """Return `[Q]` the router's probabilities, and `[Q]` whether the thought ranks better."""
    gates = [NeverGate(), AlwaysGate()]
    sessions = embedder.open_sessions(gates, store_dir, loaded.fingerprint)
    embedder.embed_candidates(sessions[0])
    embedder.embed_queries(gates, sessions, shares_pass=True)
    ranks = []
    for gate, session in zip(gates, sessions, strict=True):
        found = evaluate_session(session, loaded.name, gate.name, None, loaded.module.device)
        rank = rank_first_positives(found.facts, found.rankings["local"]).double()
        ranks.append(torch.where(rank > 0, rank, torch.inf))
    return found.thoughts.think_probability, (ranks[1] < ranks[0]).long()


def _time_queries(embedder: SplitEmbedder) -> tuple[float, float]:
    """Return the seconds of embedding a query without and with thought, over a sample."""
    data, queries = embedder.data, embedder.data.evaluation_sets[embedder.split].queries
    num_timed = min(len(queries), _NUM_TIMED)
    places = np.linspace(0, len(queries) - 1, num_timed).astype(np.int64)
    places = places[np.lexsort((queries.lengths[places], queries.has_image[places]))]
    num_batches = -(-num_timed // (data.eval_batch_size * data.eval_window))
    batches = [part.tolist() for part in np.array_split(places, num_batches)]
    seconds = [0.0, 0.0]
    with torch.no_grad():
        for number, batch in enumerate(
            data.build_evaluation_loaders(embedder.split, batches, [])[0]
        ):
            assert isinstance(batch, QueryBatch)
            if number == 0:  # what is only slow the first time is not counted
                embedder.module.embed_queries(batch, AlwaysGate())
            for side, gate in enumerate((NeverGate(), AlwaysGate())):
                start = time.perf_counter()
                embedder.module.embed_queries(batch, gate)
                seconds[side] += time.perf_counter() - start
    return seconds[0] / num_timed, seconds[1] / num_timed


def _select_labelled(probability: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return probability[target != _UNKNOWN], target[target != _UNKNOWN]


def _judge(calibration: RouterCalibration, probability: Tensor, target: Tensor) -> dict[str, Any]:
    """Return how well the router tells queries apart, before and after."""
    after = calibration.calibrate(probability)
    raw, known = _select_labelled(probability, target)
    calibrated, _ = _select_labelled(after, target)
    has_both = 0 < int(known.sum()) < len(known)
    return {
        "num_queries": len(target),
        "num_labelled": len(known),
        "num_positive": int(known.sum()),
        "auroc": binary_auroc(raw, known).item() if has_both else None,
        "ece": bin_probabilities(raw, known).calibration_error,
        "ece_calibrated": bin_probabilities(calibrated, known).calibration_error,
        "think_rate": (probability >= 0.5).double().mean().item(),
        "think_rate_calibrated": (after >= 0.5).double().mean().item(),
    }


def _print(console: Console, calibration: RouterCalibration, found: dict[str, Any]) -> None:
    table = Table("", "raw", "calibrated")
    auroc = "-" if found["auroc"] is None else f"{found['auroc']:.4f}"
    table.add_row("AUROC", auroc, auroc if calibration.method == "temperature" else "")
    for heading, name in (("ECE", "ece"), ("think rate at 0.5", "think_rate")):
        table.add_row(heading, f"{found[name]:.4f}", f"{found[f'{name}_calibrated']:.4f}")
    console.print(table)
    direct, thought = calibration.direct_seconds, calibration.thought_seconds
    assert direct is not None
    assert thought is not None
    table = Table("budget", "think from raw", "calibrated", "queries/s", title="head gate")
    for tenth in range(1, 10):
        threshold = calibration.find_threshold(tenth / 10)
        worth = calibration.calibrate(torch.tensor([min(threshold, 1.0)], dtype=torch.float64))
        speed = 1 / (direct + tenth / 10 * (thought - direct))
        table.add_row(
            f"{tenth / 10:.0%}", f"{threshold:.6f}", f"{worth.item():.4f}", f"{speed:,.1f}"
        )
    console.print(table)
    console.print(
        f"{found['num_labelled']:,} of {found['num_queries']:,} queries have a label, "
        f"{found['num_positive']:,} need thought ({calibration.labels}); a query takes "
        f"{direct:.3g} s without thought, {thought:.3g} s with"
    )
