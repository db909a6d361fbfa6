"""The losses in float64, one row at a time, from scalars that autograd can differentiate."""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(
    queries: Tensor,
    candidates: Tensor,
    targets: list[int],
    temperature: float | Tensor,
    left_out: set[tuple[int, int]] = frozenset(),
) -> Tensor:
    """Return the mean of -log(exp(s+) / sum exp(s)), the pairs `left_out` removed from the sum."""
    losses = []
    for i, target in enumerate(targets):
        scores = [
            (queries[i] * row).sum() / (queries[i].norm() * row.norm()) / temperature
            for row in candidates
        ]
        kept = [s.exp() for j, s in enumerate(scores) if (i, j) not in left_out]
        losses.append(sum(kept).log() - scores[target])
    return sum(losses) / len(losses)


def router_loss(logits: Tensor, difficulty: list[int]) -> Tensor:
    """Return the mean of -log p(difficulty) over rows that have one."""
    losses = []
    for logit, label in zip(logits, difficulty, strict=True):
        p = 1 / (1 + (-logit).exp())
        if label >= 0:
            losses.append(-(p if label == 1 else 1 - p).log())
    return sum(losses) / len(losses)


def lm_loss(logits: Tensor, targets: list[int], num_tokens: float) -> Tensor:
    """Return the sum of -log p(target) over `num_tokens`."""
    losses = [row.exp().sum().log() - row[t] for row, t in zip(logits, targets, strict=True)]
    return torch.stack(losses).sum() / num_tokens
