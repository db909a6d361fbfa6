"""Products of rows and weights for inference, on a CPU by oneDNN.

torch multiplies float32 by MKL, which leaves half of some processors' width unused, and in every
product puts the weight in order anew. oneDNN uses all of it, and takes small weights put in order
before. It is asked by the operations that torch.compile has for bfloat16. Those who use it compare
a layer's states first.

Shapes: D dimensions in, O dimensions out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEAST_ROWS = 16  # of fewer, asking oneDNN takes longer than the product
_MOST_PACKED = 2**18  # numbers of a weight that is worth a copy in another order


class Product:
    """Projections of one input as one product; several weights become parts of one.

    Args:
        projections: Plain ones, all with a bias or all without.

    Raises:
        ValueError: One is adapted or quantized.
    """

    def __init__(self, *projections: nn.Module) -> None:
        self._projections = [check_plain(projection) for projection in projections]
        self._places: list[int] = []
        self._weight: Tensor = self._projections[0].weight
        self._bias: Tensor | None = None
        self._packed: Tensor | None = None
        self._copied: Tensor | None = None  # the weight that was packed

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: what oneDNN has put in order cannot be copied."""
        return vars(self) | {"_places": [], "_packed": None, "_copied": None}

    def refresh(self) -> None:
        """Take the weights as they are now.

        A change of their type or device is seen without it, one of their numbers is not.
        """
        if self._places != self._find_places():
            biases = [p.bias for p in self._projections if p.bias is not None]
            self._weight = _lay_together([p.weight for p in self._projections])
            self._bias = _lay_together(biases) if biases else None
            self._places = self._find_places()
            self._copied = None
        if self._copied is None or not torch.equal(self._copied, self._weight):
            self._packed = _pack(self._weight)
            is_copy = self._packed is not None and self._packed is not self._weight
            self._copied = self._weight.clone() if is_copy else None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return `[..., O]`, the results side by side, of `[..., D]`."""
        if self._is_small(rows) or self._packed is None:
            return functional.linear(rows, self._weight, self._bias)
        multiply = torch.ops.mkldnn._linear_pointwise
        return multiply(rows, self._packed, self._bias, "none", [], "")  # type: ignore[no-any-return]

    def add_to(self, states: Tensor, rows: Tensor) -> Tensor:
        """Return states `[..., O]` plus the product of rows `[..., D]`."""
        if self._is_small(rows) or self._packed is None:
            whole, part = states.flatten(0, -2), rows.flatten(0, -2)
            added = torch.addmm(whole, part, self._weight.t()).view(states.shape)
            return added if self._bias is None else added.add_(self._bias)
        multiply = torch.ops.mkldnn._linear_pointwise.binary
        return multiply(rows, states, self._packed, self._bias, "add")  # type: ignore[no-any-return]

    def _is_small(self, rows: Tensor) -> bool:
        """Return whether there are few rows, with the weights where they were."""
        if self._places != self._find_places():
            self.refresh()
        return rows.numel() < _LEAST_ROWS * rows.shape[-1]

    def _find_places(self) -> list[int]:
        """Return where the weights are in memory; a bias goes where its weight goes."""
        return [projection.weight.data_ptr() for projection in self._projections]


def _pack(weight: Tensor) -> Tensor | None:
    """Return a weight as oneDNN is to have it, or None where torch's product is as good."""
    mkldnn = torch.backends.mkldnn
    is_used = weight.is_cpu and mkldnn.enabled and mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.dtype == torch.bfloat16:
        is_used = is_used and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    elif weight.dtype != torch.float32:
        return None
    if not is_used or weight.numel() > _MOST_PACKED:
        return weight if is_used else None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return packed


@torch.inference_mode(mode=False)
def _lay_together(parameters: Sequence[Tensor]) -> Tensor:
    """Return one tensor of all rows, of which the parameters hold parts from now on."""
    if len(parameters) == 1:
        return parameters[0].data
    whole = torch.cat([parameter.data for parameter in parameters])
    parts = torch.split(whole, [len(parameter) for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    return whole


def check_plain(projection: nn.Module) -> nn.Linear:
    """Return the projection.

    Raises:
        ValueError: It is not a plain one, but adapted or quantized.
    """
    if type(projection) is not nn.Linear:
        raise ValueError(f"a projection is a {type(projection).__name__}, not a plain Linear")
    return projection
