"""The `fit-router` verb: a linear router for a fitted run, from labels of its own making.

Shapes: Q labelled queries, D dimensions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.route_labels import read_route_labels
from tracelib.data.table_cache import hash_file
from tracelib.models.adapter_file import read_step, write_adapter
from tracelib.models.gates import NeverGate
from tracelib.models.router import DifficultyRouter
from tracelib.module import RetrievalModule
from tracelib.recipe import find_adapter, load_run
from tracelib.retrieval.runs import collect_provenance
from tracelib.retrieval.whole_files import write_whole
from tracelib.types import QueryBatch

_MAX_STEPS = 500
_TOLERANCE = 1e-9


def fit_router(
    run: Path,
    labels: Path | None = None,
    output: Path | None = None,
    max_queries: int = 50_000,
    weight_decay: float = 1e-4,
) -> None:
    """Fit a linear router to labels of a run's training queries, and nothing else.

    The labels are rows of `route-labels`: what the run's own thoughts gained. They tell hard
    queries that need a thought from those that are found without, which the annotated difficulty
    does not. Embeddings stay as they are: the output is a copy of the run with another router,
    which `calibrate` (best with --method isotonic) and `evaluate` take like any run.

    Args:
        run: Folder of a run that writes thoughts.
        labels: Rows that `route-labels` wrote of the run's train split; default is
            route_labels.jsonl in the run.
        output: Folder of the copy; default has `_router` behind the run's name.
        max_queries: Most queries to learn from, evenly spread over the labelled ones, above 1.
        weight_decay: Penalty on the squared weights, >= 0, beside the mean cross-entropy.

    Raises:
        FileNotFoundError: The folder holds no finished run.
        ValueError: The output exists, a number is out of its range, or the labels are another
            run's or all alike.
        DataError: A label is broken or of no training query.
    """
    folder = run.resolve()
    labels = labels or run / "route_labels.jsonl"
    output = output or folder.parent.with_name(f"{folder.parent.name}_router") / folder.name
    if max_queries < 2 or weight_decay < 0:
        raise ValueError(
            f"max_queries is {max_queries}, allowed 2 and above; weight_decay is {weight_decay}, "
            "allowed 0 and above"
        )
    if find_adapter(output).exists():
        raise ValueError(f"{output} is a run already: name another folder with --output")
    module, data, config = load_run(run)
    places, target = _read_targets(labels, module, data, max_queries)
    kept = {
        name: weight.clone()
        for name, weight in module.list_trained_weights().items()
        if not name.startswith("router.")
    }
    states = _read_states(module, data, places)
    router, loss = fit_linear_router(states, target, weight_decay)
    judged = {
        "none": _judge(target.mean().logit().expand_as(target), target),
        "new": _judge(router(states), target),
    }
    if module.router is not None:
        judged["old"] = _judge(module.router.cpu()(states), target)
    config["model"] |= {"router_width": 0, "router_weight": config["model"]["router_weight"] or 1.0}
    report = {
        "run": str(run),
        "labels": labels.name,
        "labels_sha256": hash_file(labels),
        "num_queries": len(target),
        "weight_decay": weight_decay,
        "mean_target": target.mean().item(),
        "on_the_queries_it_was_fitted_to": judged,
        "provenance": collect_provenance(
            config, data.reader.file_hashes("train"), "random", str(module.encoder.dtype)
        ),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "router_fit.json", json.dumps(report, indent=1) + "\n")
    write_whole(output / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    # last: a folder is a run once it has an adapter file
    weights = kept | {f"router.{name}": weight for name, weight in router.state_dict().items()}
    step = read_step(find_adapter(run))
    write_adapter(find_adapter(output), weights, module.encoder.fingerprint, step)
    _print(judged, loss)
    rank_zero_info(f"run with the new router: {output}")


def _read_targets(
    labels: Path, module: RetrievalModule, data: MBEIRDataModule, max_queries: int
) -> tuple[NDArray[np.int64], Tensor]:
    """Return places of the training queries to learn from, and `[Q]` float64 targets.

    Raises:
        ValueError: The labels are another run's, none or all alike.
    """
    summary = labels.with_suffix(".json")
    found = json.loads(summary.read_text()) if summary.exists() else {}
    if found.get("provenance", {}).get("weights") != module.compute_fingerprint():
        raise ValueError(
            f"{labels} is not said to be of this run's weights by {summary.name} beside it: label "
            "its training queries with python -m tracelib route-labels --share=1 --run RUN"
        )
    data.set_up_training_queries()
    targets = read_route_labels(labels, data.evaluation_sets["train"].queries, "soft")
    places = np.flatnonzero(targets >= 0)
    if len(places) > max_queries:
        places = places[np.linspace(0, len(places) - 1, max_queries).astype(int)]
    target = torch.from_numpy(targets[places]).double()
    if len(target) < 2 or target.min() == target.max():
        raise ValueError(f"{labels} has {len(target)} labels, all alike: there is nothing to learn")
    return places, target


def fit_linear_router(
    states: Tensor, target: Tensor, weight_decay: float
) -> tuple[DifficultyRouter, float]:
    """Return the linear router of least mean cross-entropy and penalty, and what these come to.

    Args:
        states: `[Q, D]` prompt states.
        target: `[Q]` float64 probabilities that a query should think.
        weight_decay: Penalty on the squared weights.
    """
    router = DifficultyRouter(states.shape[1], width=0).double()
    norm, last = router.layers
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Linear)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, target.mean().logit().item())
    inputs = norm(states.double()).detach()  # its own scale and shift would add nothing
    optimizer = torch.optim.LBFGS(
        last.parameters(),
        max_iter=_MAX_STEPS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def measure() -> Tensor:
        optimizer.zero_grad()
        entropy = functional.binary_cross_entropy_with_logits(last(inputs)[:, 0], target)
        loss = entropy + weight_decay * last.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(measure)  # type: ignore[no-untyped-call]
    loss = measure().item()
    return router.float(), loss


@torch.no_grad()
def _read_states(
    module: RetrievalModule, data: MBEIRDataModule, places: NDArray[np.int64]
) -> Tensor:
    """Return `[Q, D]` the prompt states of training queries at some places."""
    module = module.to("cuda" if torch.cuda.is_available() else "cpu")
    module.encoder.prepare_inference()
    queries = data.evaluation_sets["train"].queries
    order = np.lexsort((queries.lengths[places], queries.has_image[places]))
    size = data.eval_batch_size * data.eval_window
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    loader = data.build_evaluation_loaders("train", [places[p].tolist() for p in parts], [])[0]
    states = torch.empty(len(places), module.encoder.hidden_size)
    for part, batch in track(
        zip(parts, loader, strict=True), "prompts", total=len(parts), console=Console(stderr=True)
    ):
        assert isinstance(batch, QueryBatch)
        states[part] = module.embed_queries(batch, NeverGate()).direct_embeddings
    return states


@torch.no_grad()
def _judge(logits: Tensor, target: Tensor) -> dict[str, float | None]:
    """Return mean cross-entropy, and AUROC against who should rather think, None if all should."""
    entropy = functional.binary_cross_entropy_with_logits(logits.double(), target)
    is_one = target > 0.5
    auroc = None if is_one.all() or not is_one.any() else binary_auroc(logits, is_one.long()).item()
    return {"cross_entropy": entropy.item(), "auroc": auroc}


def _print(judged: dict[str, dict[str, float | None]], loss: float) -> None:
    """Print what no router, the new and the old one are worth."""
    table = Table("router", "cross-entropy", "AUROC", title="on the queries it was fitted to")
    for name, values in judged.items():
        table.add_row(
            name, *("-" if value is None else f"{value:.4f}" for value in values.values())
        )
    console = Console()
    console.print(table)
    console.print(f"cross-entropy and penalty come to {loss:.4f}")
