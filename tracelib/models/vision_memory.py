"""What a frozen vision encoder gave for a chunk, so that later passes need not run it again.

A step reads its pictures more than once: with cached gradients each chunk is encoded twice, and a
thought is written before it is embedded. The vision encoder is frozen, so its blocks give the same
each time; the projector behind them is trained, and runs in every pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn


class VisionMemory:
    """Lets the blocks of a frozen vision encoder give again what they gave before.

    Args:
        blocks: The blocks in order; their `forward` is replaced.
        read_blocks: Numbers of the blocks whose output is read by more than the next block; the
            last one's always is.

    Raises:
        ValueError: A block is trained.
    """

    def __init__(self, blocks: Sequence[nn.Module], read_blocks: Collection[int] = ()) -> None:
        if any(p.requires_grad for block in blocks for p in block.parameters()):
            raise ValueError("the vision encoder is trained: what it gave is no longer true")
        self.read_blocks = {len(blocks) - 1, *read_blocks}
        self._outputs: dict[int, Tensor] | None = None
        self._is_full = False
        for number, block in enumerate(blocks):
            block.forward = partial(_run_block, self, number, block)

    @contextmanager
    def share(self, outputs: dict[int, Tensor] | None) -> Iterator[None]:
        """Fill `outputs` in the first pass, and take the blocks' outputs from it in later ones.

        Args:
            outputs: Outputs of one chunk by block number, empty at first; None shares nothing.
        """
        self._outputs, self._is_full = outputs, bool(outputs)
        try:
            yield
        finally:
            self._outputs, self._is_full = None, False


def _run_block(
    memory: VisionMemory, number: int, block: nn.Module, states: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    outputs = memory._outputs
    if outputs is not None and memory._is_full:
        return outputs.get(number, states)
    given: Tensor = type(block).forward(block, states, *args, **kwargs)
    if outputs is not None and number in memory.read_blocks:
        outputs[number] = given
    return given
