"""Who decides to think: a small head on the prompt's last state, and the gates.

Shapes: B queries, D dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_TASKS = 9
"""M-BEIR task ids run from 0 to 8."""


class DifficultyRouter(nn.Module):
    """P(the query needs thought), from the state that predicts its first token.

    Args:
        hidden_size: Dimensions of the state.
        width: Hidden units.
        stop_gradient: Keep the router's gradient out of the backbone.
    """

    def __init__(self, hidden_size: int, width: int = 64, stop_gradient: bool = True) -> None:
        super().__init__()
        self.stop_gradient = stop_gradient
        self.layers = nn.Sequential(
            nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, prompt_state: Tensor) -> Tensor:
        """Return logits `[B]` of states `[B, D]`."""
        state = prompt_state.detach() if self.stop_gradient else prompt_state
        weights = next(self.layers.parameters())
        logits: Tensor = self.layers(state.to(weights.dtype)).squeeze(-1).float()
        return logits


@dataclass(frozen=True)
class GateFeatures:
    """All a gate may look at after the prefill.

    Args:
        emb_is_first: `[B]` whether the embedding token is the most likely first token.
        think_probability: `[B]` the router's probability.
        task_prior: `[B]` share of training queries of the same task that needed thought.
    """

    emb_is_first: Tensor
    think_probability: Tensor
    task_prior: Tensor


class Gate(ABC):
    """Decides which queries think."""

    name: str

    @abstractmethod
    def decide(self, features: GateFeatures) -> Tensor:
        """Return `[B]` bool, True where the query thinks."""


class NeverGate(Gate):
    """No query thinks: direct encoding."""

    name = "never"

    def decide(self, features: GateFeatures) -> Tensor:
        """Return all False."""
        return torch.zeros_like(features.emb_is_first)


class AlwaysGate(Gate):
    """Every query thinks, also where the model would answer at once."""

    name = "always"

    def decide(self, features: GateFeatures) -> Tensor:
        """Return all True."""
        return torch.ones_like(features.emb_is_first)


class FirstTokenGate(Gate):
    """A query thinks unless the embedding token is its likeliest first token (TRACE, 3.3)."""

    name = "first_token"

    def decide(self, features: GateFeatures) -> Tensor:
        """Return where the embedding token does not come first."""
        return ~features.emb_is_first


class HeadGate(Gate):
    """A query thinks when the router's probability reaches a threshold.

    Args:
        threshold: 0 thinks always, anything above 1 never.
    """

    name = "head"

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def decide(self, features: GateFeatures) -> Tensor:
        """Return where the probability is at least the threshold."""
        return features.think_probability >= self.threshold


class TaskPriorGate(Gate):
    """A query thinks when most training queries of its task did; it knows nothing else."""

    name = "task_prior"

    def decide(self, features: GateFeatures) -> Tensor:
        """Return where the task's share of hard training queries is at least a half."""
        return features.task_prior >= 0.5
