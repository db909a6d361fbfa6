"""InfoNCE of queries against candidates (TRACE, section 3.3).

Shapes: Q queries, C candidates, D dimensions, P positives of a query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tracelib.losses.collisions import find_false_negatives


class InfoNCELoss(nn.Module):
    """Cross-entropy of each query's positive among all candidates, over cosine / temperature.

    Under DDP pass the local queries and the candidates of all ranks, gathered with gradient, and
    scale nothing: averaging gradients over ranks then gives the gradient of the global batch. If
    gathered queries are scored too, on every rank, the gradient shrinks. Gradient accumulation
    adds no negatives; only a larger batch does.

    Args:
        temperature: Divisor of the cosines, above 0; the first value when it is learned.
        learn_temperature: Train the logarithm of 1 / temperature.
        chunk_size: Most queries whose logits are held at once, >= 1; with more queries than that,
            the backward pass computes logits again. Changes memory, not the loss.

    Raises:
        ValueError: The temperature is not above 0, or the chunk size not at least 1.

    References:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding
        (arXiv 1807.03748), equation 4.
    """

    def __init__(
        self, temperature: float = 0.05, learn_temperature: bool = False, chunk_size: int = 1024
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature is {temperature}; allowed above 0 and finite "
                "(model.contrastive.init_args.temperature)"
            )
        if chunk_size < 1:
            raise ValueError(
                f"chunk_size is {chunk_size}, must be at least 1 "
                "(model.contrastive.init_args.chunk_size)"
            )
        self.temperature, self.chunk_size = temperature, chunk_size
        self.log_scale = (
            nn.Parameter(torch.tensor(-math.log(temperature))) if learn_temperature else None
        )

    def forward(
        self,
        queries: Tensor,
        candidates: Tensor,
        targets: Tensor,
        positive_ids: Tensor | None = None,
        candidate_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss over queries, a float32 scalar.

        A candidate that is among a query's positives, but not its target, is neither: further
        copies of the positive and other right answers are left out of that query's sum.

        Args:
            queries: `[Q, D]` embeddings, Q >= 1; normalised here, in float32.
            candidates: `[C, D]` embeddings.
            targets: `[Q]` int64, the row of `candidates` that holds each query's positive.
            positive_ids: `[Q, P]` int64 ids of each query's positives, >= 0, padded with -1; None
                leaves no candidate out.
            candidate_ids: `[C]` int64 ids of the candidates, >= 0; given if `positive_ids` are.

        Raises:
            ValueError: Shapes do not fit, a target is out of range or not among its query's
                positives, a candidate id is below 0, or ids of one side alone are given.
        """
        _check_inputs(queries, candidates, targets)
        if positive_ids is not None and candidate_ids is not None:
            _check_ids(targets, len(candidates), positive_ids, candidate_ids)
        elif positive_ids is not None or candidate_ids is not None:
            raise ValueError("positive_ids and candidate_ids: give both or none")
        with torch.autocast(queries.device.type, enabled=False):  # bf16 cosines cost 3 digits
            unit_queries = functional.normalize(queries.float(), dim=-1)
            unit_candidates = functional.normalize(candidates.float(), dim=-1)
            total = queries.new_zeros((), dtype=torch.float32)
            for first in range(0, len(queries), self.chunk_size):
                rows = slice(first, first + self.chunk_size)
                chunk = (
                    unit_queries[rows],
                    unit_candidates,
                    targets[rows],
                    None if positive_ids is None else positive_ids[rows],
                    candidate_ids,
                )
                if len(queries) <= self.chunk_size:
                    total = self._sum_losses(*chunk)
                else:
                    total = total + checkpoint(
                        self._sum_losses, *chunk, use_reentrant=False, preserve_rng_state=False
                    )
            return total / len(queries)

    def _sum_losses(
        self,
        queries: Tensor,
        candidates: Tensor,
        targets: Tensor,
        positive_ids: Tensor | None,
        candidate_ids: Tensor | None,
    ) -> Tensor:
        """Return the sum of the losses of a chunk of queries, normalised like the candidates."""
        scores = queries @ candidates.T
        if self.log_scale is None:
            logits = scores / self.temperature
        else:
            logits = scores * self.log_scale.float().exp()
        if positive_ids is not None and candidate_ids is not None:
            rows, columns = find_false_negatives(targets, positive_ids, candidate_ids)
            logits[rows, columns] = -math.inf
        return functional.cross_entropy(logits, targets, reduction="sum")


def _check_inputs(queries: Tensor, candidates: Tensor, targets: Tensor) -> None:
    """Raise ValueError naming the shapes, or the first row whose target is no candidate."""
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


def _check_ids(
    targets: Tensor, num_candidates: int, positive_ids: Tensor, candidate_ids: Tensor
) -> None:
    """Raise ValueError naming the shapes, or the first row whose target is not its positive."""
    num_queries = len(targets)
    if (
        positive_ids.ndim != 2
        or len(positive_ids) != num_queries
        or candidate_ids.shape != (num_candidates,)
    ):
        raise ValueError(
            f"positive_ids {tuple(positive_ids.shape)}, candidate_ids "
            f"{tuple(candidate_ids.shape)}; expected [Q, P] and [C] with Q = {num_queries}, "
            f"C = {num_candidates}"
        )
    if len(below := (candidate_ids < 0).nonzero()):
        row = int(below[0])
        raise ValueError(f"candidate id of row {row} is {int(candidate_ids[row])}, must be >= 0")
    wrong = (positive_ids != candidate_ids[targets, None]).all(1).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"target {int(targets[row])} of query row {row} has candidate id "
            f"{int(candidate_ids[targets[row]])}, which is none of its positive_ids "
            f"{positive_ids[row].tolist()}"
        )
