"""Token cross-entropy of the language-modelling loss (TRACE, section 3.3).

Shapes: N target tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def compute_lm_loss(
    logits: Tensor, targets: Tensor, num_tokens: Tensor | int | None = None
) -> Tensor:
    """Return the cross-entropy per target token.

    Args:
        logits: `[N, V]` logits of the positions that predict a target.
        targets: `[N]` token ids.
        num_tokens: Divisor; None takes N. Under DDP pass the mean count per rank, which averages
            over the global batch.

    Returns:
        A scalar, 0 when there is no target (its gradient is 0 too).
    """
    total = functional.cross_entropy(logits.float(), targets, reduction="sum")
    count = targets.numel() if num_tokens is None else num_tokens
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)
