"""InfoNCE of queries against candidates (TRACE, section 3.3).

Shapes: Q queries, C candidates, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class InfoNCELoss(nn.Module):
    """Cross-entropy of each query's positive among all candidates, over cosine / temperature.

    Under DDP pass the local queries and the candidates of all ranks, gathered with gradient, and
    scale nothing: averaging gradients over ranks then gives the gradient of the global batch. If
    gathered queries are scored too, on every rank, the gradient shrinks. Gradient accumulation
    adds no negatives; only a larger batch does.

    Args:
        temperature: Divisor of the cosines, above 0; the first value when it is learned.
        learn_temperature: Train the logarithm of 1 / temperature.

    Raises:
        ValueError: The temperature is not above 0.

    References:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding
        (arXiv 1807.03748), equation 4.
    """

    def __init__(self, temperature: float = 0.05, learn_temperature: bool = False) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; allowed above 0 and finite")
        self.temperature = temperature
        self.log_scale = (
            nn.Parameter(torch.tensor(-math.log(temperature))) if learn_temperature else None
        )

    def forward(
        self,
        queries: Tensor,
        candidates: Tensor,
        targets: Tensor,
        is_false_negative: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss over queries, a float32 scalar.

        Args:
            queries: `[Q, D]` embeddings, Q >= 1; normalised here, in float32.
            candidates: `[C, D]` embeddings.
            targets: `[Q]` int64, the row of `candidates` that holds each query's positive.
            is_false_negative: `[Q, C]` bool, True on candidates to leave out because they suit the
                query too, such as further copies of its positive; never on the target itself.

        Raises:
            ValueError: Shapes do not fit, or a target is out of range or marked false negative.
        """
        _check_inputs(queries, candidates, targets, is_false_negative)
        with torch.autocast(queries.device.type, enabled=False):  # bf16 cosines cost 3 digits
            unit_queries = functional.normalize(queries.float(), dim=-1)
            unit_candidates = functional.normalize(candidates.float(), dim=-1)
            scores = unit_queries @ unit_candidates.T
            if self.log_scale is None:
                logits = scores / self.temperature
            else:
                logits = scores * self.log_scale.float().exp()
            if is_false_negative is not None:
                logits = logits.masked_fill(is_false_negative, -math.inf)
            return functional.cross_entropy(logits, targets)


def _check_inputs(
    queries: Tensor, candidates: Tensor, targets: Tensor, is_false_negative: Tensor | None
) -> None:
    """Raise ValueError naming the shapes, or the first row whose target cannot be the positive."""
    num_queries, num_candidates = len(queries), len(candidates)
    fits = queries.ndim == candidates.ndim == 2 and queries.shape[1] == candidates.shape[1]
    if not fits or not num_queries or targets.shape != (num_queries,):
        raise ValueError(
            f"queries {tuple(queries.shape)}, candidates {tuple(candidates.shape)}, targets "
            f"{tuple(targets.shape)}; expected [Q, D], [C, D], [Q] with Q >= 1"
        )
    outside = ((targets < 0) | (targets >= num_candidates)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise ValueError(
            f"target of query row {row} is {int(targets[row])}; allowed 0 .. {num_candidates - 1}"
        )
    if is_false_negative is None:
        return
    if is_false_negative.shape != (num_queries, num_candidates):
        raise ValueError(
            f"is_false_negative has shape {tuple(is_false_negative.shape)}; expected [Q, C] = "
            f"[{num_queries}, {num_candidates}]"
        )
    masked = is_false_negative.gather(1, targets[:, None]).flatten().nonzero()
    if len(masked):
        row = int(masked[0])
        raise ValueError(
            f"target {int(targets[row])} of query row {row} is marked a false negative; clear it"
        )
