"""What one of several processes does; it is spawned, so it has a module of its own."""

from __future__ import annotations

import dataclasses
import gc
import itertools
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.tiny import build, rewrite_rows
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.layout import Layout
from tracelib.distributed import average_over_ranks, gather_rows, gather_tensor, gather_with_grad
from tracelib.joint_step import LossWeights
from tracelib.module import RetrievalModule
from tracelib.retrieval.ranking import rank_pools
from tracelib.types import TrainBatch

WORLD_SIZE = 2
NUM_ROWS = 5
"""Queries per rank."""


class JointLoss(nn.Module):
    """The module's training step as a forward, which is what DDP wraps."""

    def __init__(self, module: RetrievalModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: TrainBatch) -> Tensor:
        return self.module.training_step(batch, 0)["loss"]


def make(args: list[str]) -> tuple[RetrievalModule, MBEIRDataModule, list[list[int]]]:
    """Return a module, its data and the rows of each rank, who differ in all that may differ.

    Rank 0 has no pictures, one hard negative and one known difficulty; rank 1 has pictures, a hard
    negative per query, long rationales and all difficulties.
    """
    module, data = build(args)
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    queries = data.train_dataset.queries
    rows = [[i for i, q in enumerate(queries) if q.task_id == 1][:NUM_ROWS]]
    rows.append([i for i, q in enumerate(queries) if q.task_id in (7, 8) and q.negative_ids])
    rows[1] = rows[1][:NUM_ROWS]
    return module.train(), data, rows


WEIGHTS = {
    "contrastive": LossWeights(1, 0, 0),
    "lm": LossWeights(0, 1, 0),
    "router": LossWeights(0, 0, 1),
    "joint": LossWeights(0.7, 0.3, 2),
}
"""Each term of the loss alone, and all of them."""


def copy_gradients(module: RetrievalModule) -> dict[str, Tensor]:
    """Return a copy of the gradients of all that is trained."""
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.requires_grad}


POOL = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
"""Rank 0's half is of one embedding, the whole is not."""


def rank_shares(rows: Tensor, first_place: int) -> Tensor:
    """Return the places that all ranks find for two queries in a pool of which each has a share."""
    queries = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    pools = {"a_task0": [(first_place, rows)]}
    return rank_pools(queries, {"a_task0": range(2)}, pools, 3)["local"].places


def impoverish(root: Path) -> None:
    """Leave rank 0's queries but one without a hard negative and without a judged difficulty."""
    layout, poor = Layout(root), set()

    def drop_negatives(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in [row for row in rows if row["task_id"] == 1][1:NUM_ROWS]:
            row["neg_cand_list"] = []
            poor.add(row["qid"])
        return rows

    rewrite_rows(layout.query("scenes", "train"), drop_negatives)
    rewrite_rows(
        layout.rationales("scenes", "train"),
        lambda rows: [row for row in rows if row["qid"] not in poor],
    )


def measure(rank: int, args: list[str]) -> dict[str, object]:
    """Return this rank's gradients, right and scaled, its batches, and what it gathers."""
    module, data, rows = make(args)
    model = DistributedDataParallel(JointLoss(module))
    batch = data.train_dataset[rows[rank]]
    found: dict[str, object] = {}
    for (name, weights), is_cached in itertools.product(WEIGHTS.items(), (False, True)):
        module.joint_step.weights = weights
        module.zero_grad()
        loss = model(dataclasses.replace(batch, is_cached=is_cached))
        loss.backward()
        found[f"{name} {is_cached}"] = copy_gradients(module)
        found[f"{name} {is_cached} loss"] = average_over_ranks(loss.detach())
    module.zero_grad()
    (model(batch) * WORLD_SIZE).backward()
    found["scaled"] = copy_gradients(module)
    found["task_counts"] = module.task_counts
    found["ranked"] = rank_shares(POOL[2 * rank : 2 * rank + 2], 2 * rank)
    try:
        rank_shares(POOL[:2], 2 * rank)
    except ValueError as error:
        found["refused"] = str(error)
    found["batches"] = list(data.build_train_sampler())
    local = torch.arange(rank + 1.0, requires_grad=True)
    gathered = gather_with_grad(local)
    ((rank + 1) * gathered * torch.arange(3.0)).sum().backward()
    found["gathered"] = (gathered.detach(), local.grad, gather_tensor(local), gather_rows([rank]))
    return found


def run(rank: int, args: list[str], folder: Path) -> None:
    """Be one rank, and write to `folder` what it measures."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD_SIZE
    )
    torch.save(measure(rank, args), folder / f"rank{rank}.pt")
    # Nothing may use the group any longer, on either side, or its end can hang.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
