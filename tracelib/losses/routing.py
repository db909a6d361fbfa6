"""Binary cross-entropy of the router's decision to think.

Shapes: B queries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def compute_router_loss(
    logits: Tensor, difficulty: Tensor, num_known: Tensor | int | None = None
) -> Tensor:
    """Return the mean cross-entropy over the queries whose difficulty is known.

    Args:
        logits: `[B]` log-odds that the query needs thought.
        difficulty: `[B]` 1 when it does, 0 when not, a probability in between, -1 when nobody said.
        num_known: Divisor; None counts the known ones. Under DDP pass the mean count per rank,
            which averages over the global batch.

    Returns:
        A float32 scalar, 0 when no difficulty is known (its gradient is 0 too).

    Raises:
        ValueError: Shapes differ, or a difficulty is neither -1 nor in 0 .. 1.
    """
    if logits.ndim != 1 or logits.shape != difficulty.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, difficulty {tuple(difficulty.shape)}; expected [B] both"
        )
    known = (difficulty >= 0) & (difficulty <= 1)
    bad = (~known & (difficulty != -1)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"difficulty of row {row} is {difficulty[row].item()}; allowed -1 and 0 .. 1"
        )
    total = functional.binary_cross_entropy_with_logits(
        logits[known].float(), difficulty[known].float(), reduction="sum"
    )
    count = torch.as_tensor(known.sum() if num_known is None else num_known, device=total.device)
    # A mean count per rank may lie between 0 and 1.
    return total / torch.where(count > 0, count, 1)
