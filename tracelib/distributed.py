"""World size, gathers and sums over ranks; the only user of `torch.distributed`.

Shapes: B local rows, W ranks; every rank must hold the same B.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def get_world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Return this process's rank, 0 without a process group."""
    return dist.get_rank() if get_world_size() > 1 else 0


class _GatherWithGrad(torch.autograd.Function):
    """All-gather whose backward sums every rank's gradient of the local slice."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Gather `[B, ...]` tensors of all ranks to `[W * B, ...]`, in rank order, with gradient.

    With local queries against gathered candidates, and DDP's averaging, the gradient equals that of
    one process holding the global batch: the loss must not be scaled by the world size.
    """
    if get_world_size() == 1:
        return tensor
    gathered: Tensor = _GatherWithGrad.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def gather_tensor(tensor: Tensor) -> Tensor:
    """Gather `[B, ...]` tensors of all ranks to `[W * B, ...]`, in rank order, without gradient."""
    if get_world_size() == 1:
        return tensor
    gathered = [torch.empty_like(tensor) for _ in range(get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.cat(gathered)


def average_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a scalar over ranks."""
    if get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value = value / get_world_size()
    return value


def gather_rows(rows: list[Any]) -> list[Any]:
    """Gather lists of rows of this run's own processes, in rank order; lengths may differ."""
    if get_world_size() == 1:
        return rows
    gathered: list[list[Any]] = [[] for _ in range(get_world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
