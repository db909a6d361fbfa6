"""Measures what autograd keeps for the backward pass, to the byte and on any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor, nn


class SavedTensorMeter:
    """Adds up the memory of all that is saved for the backward pass while it is entered.

    Memory that several tensors share counts once, that of the model's weights not at all.

    Args:
        weights: The model's weights.

    Attributes:
        peak_bytes: The largest sum so far.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.peak_bytes = 0
        self._live_bytes = 0
        self._holders: Counter[int] = Counter()
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _Saved.unpack)

    def __enter__(self) -> SavedTensorMeter:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)

    def _pack(self, tensor: Tensor) -> _Saved:
        return _Saved(self, tensor)

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor that is saved."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self._weights:
            self._live_bytes += 0 if self._holders[key] else storage.nbytes()
            self._holders[key] += 1
            self.peak_bytes = max(self.peak_bytes, self._live_bytes)

    def release(self, tensor: Tensor) -> None:
        """Count it no longer."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self._weights:
            self._holders[key] -= 1
            self._live_bytes -= 0 if self._holders[key] else storage.nbytes()


class _Saved:
    """A tensor that is saved for as long as this lives."""

    def __init__(self, meter: SavedTensorMeter, tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor
        meter.hold(tensor)

    def __del__(self) -> None:
        self.meter.release(self.tensor)

    def unpack(self) -> Tensor:
        """Return the tensor."""
        return self.tensor
