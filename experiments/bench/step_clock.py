"""Where a training step's time goes: each moment belongs to the part that is running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tracelib.models.backbone_parts import get_causal_lm
from tracelib.models.encoder import Encoder

PARTS = ("loading", "vision", "language_model", "heads_and_losses", "optimizer", "rest")


class StepClock:
    """Adds up the seconds of the parts of steps, forward and backward.

    The backward pass of a part begins when the gradient of its output is known, and ends with that
    of its input.

    Args:
        encoder: The model whose passes are watched.
        device: Where it runs; on a GPU each change of part waits for it.
    """

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self._part, self._since, self._has_pictures = "", 0.0, False
        body = get_causal_lm(encoder.model).model
        body.register_forward_pre_hook(self._enter_body)
        body.visual.register_forward_pre_hook(self._enter_vision)
        body.visual.register_forward_hook(lambda *args: self.switch("rest"))
        body.language_model.register_forward_pre_hook(self._enter_language_model, with_kwargs=True)
        body.language_model.register_forward_hook(self._leave_language_model)

    def switch(self, part: str) -> None:
        """End the part that is running, and start another; `""` stops the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._part:
            self.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    @contextmanager
    def time_part(self, part: str) -> Iterator[None]:
        """Count what runs inside as a part, but for what the model's own passes take."""
        self.switch(part)
        yield
        self.switch("rest")

    def _enter_body(self, *args: Any) -> None:
        self._has_pictures = False
        self.switch("rest")

    def _enter_vision(self, *args: Any) -> None:
        self._has_pictures = True
        self.switch("vision")

    def _enter_language_model(self, module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        states: Tensor = named["inputs_embeds"]
        following = "vision" if self._has_pictures else "rest"  # the projector's gradient
        if states.requires_grad:
            states.register_hook(lambda grad: self.switch(following))
        self.switch("language_model")

    def _leave_language_model(self, module: nn.Module, args: Any, output: Any) -> None:
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda grad: self.switch("language_model"))
        self.switch("heads_and_losses")


def count_vision_passes(encoder: Encoder) -> Callable[[], list[int]]:
    """Count the patches that each block of the vision encoder reads from now on.

    Returns:
        Call it for the number of each block.
    """
    blocks = get_causal_lm(encoder.model).model.visual.blocks
    counts = [0] * len(blocks)

    def count(number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def add(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            states = args[0] if args else named["hidden_states"]
            counts[number] += len(states)

        return add

    for number, block in enumerate(blocks):
        # The attention, as a block whose output is remembered is called but reads nothing.
        block.attn.register_forward_pre_hook(count(number), with_kwargs=True)
    return lambda: list(counts)


def measure_matmul_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Return the most floating-point operations per second that a product of matrices reached."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        _synchronize(device)
        start = time.perf_counter()
        a @ b
        _synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
