"""World size, gathers and sums over ranks; the only user of `torch.distributed`.

Shapes: B local rows, a number that may differ by rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard


def get_world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Return this process's rank, 0 without a process group."""
    return dist.get_rank() if get_world_size() > 1 else 0


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """Return every rank's `size`, in rank order."""
    if get_world_size() == 1:
        return [size]
    sizes = [torch.empty(1, dtype=torch.long, device=device) for _ in range(get_world_size())]
    dist.all_gather(sizes, torch.tensor([size], device=device))
    return [int(other) for other in sizes]


def _gather(tensor: Tensor, sizes: list[int]) -> Tensor:
    """Gather rows of all ranks, filled up to the longest for the way, as the backends ask."""
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])


class _GatherWithGrad(torch.autograd.Function):
    """All-gather whose backward sums every rank's gradient of the local slice."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.sizes = gather_sizes(len(tensor), tensor.device)
        return _gather(tensor, ctx.sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        start = sum(ctx.sizes[: dist.get_rank()])
        return grad[start : start + ctx.sizes[dist.get_rank()]]


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Gather `[B, ...]` tensors of all ranks, in rank order, with gradient; B may differ by rank.

    With local queries against gathered candidates, and DDP's averaging, the gradient equals that of
    one process holding the global batch: the loss must not be scaled by the world size.
    """
    if get_world_size() == 1:
        return tensor
    gathered: Tensor = _GatherWithGrad.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def gather_tensor(tensor: Tensor) -> Tensor:
    """Gather `[B, ...]` tensors of all ranks, in rank order, without gradient; B may differ."""
    if get_world_size() == 1:
        return tensor
    return _gather(tensor, gather_sizes(len(tensor), tensor.device))


def average_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a tensor over ranks, value by value."""
    if get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value = value / get_world_size()
    return value


def wait_for_ranks() -> None:
    """Return when every rank has called this."""
    if get_world_size() > 1:
        dist.barrier()


def gather_rows(rows: list[Any]) -> list[Any]:
    """Gather lists of rows of this run's own processes, in rank order; lengths may differ."""
    if get_world_size() == 1:
        return rows
    gathered: list[list[Any]] = [[] for _ in range(get_world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def shard_module(
    module: nn.Module, mesh: Any, is_gathered_once: bool, ignored: set[nn.Parameter]
) -> None:
    """Shard a module's weights over the devices of a mesh; gradients are averaged over all of them.

    Args:
        module: It is changed in place. Modules in it that are sharded already stay so.
        mesh: The devices.
        is_gathered_once: Keep the weights whole from the forward to the end of the backward pass,
            in place of gathering them for each.
        ignored: Weights that stay whole, and whose gradients nobody averages.
    """
    fully_shard(
        module, mesh=mesh, reshard_after_forward=not is_gathered_once, ignored_params=ignored
    )
