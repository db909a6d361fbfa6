"""A small head on the prompt's last state that tells which queries need thought.

Shapes: B queries, D dimensions.
"""

from __future__ import annotations

from torch import Tensor, nn

NUM_TASKS = 9
"""M-BEIR task ids run from 0 to 8."""

ROUTER_WIDTH = 64
"""Hidden units of a router, unless a recipe says otherwise."""


class DifficultyRouter(nn.Module):
    """P(the query needs thought), from the state that predicts its first token.

    Args:
        hidden_size: Dimensions of the state.
        width: Hidden units; 0 makes the head linear.
        stop_gradient: Keep the router's gradient out of the backbone.
    """

    def __init__(
        self, hidden_size: int, width: int = ROUTER_WIDTH, stop_gradient: bool = True
    ) -> None:
        super().__init__()
        self.stop_gradient = stop_gradient
        hidden = [nn.Linear(hidden_size, width), nn.GELU()] if width else []
        last = nn.Linear(width or hidden_size, 1)
        self.layers = nn.Sequential(nn.LayerNorm(hidden_size), *hidden, last)

    def forward(self, prompt_state: Tensor) -> Tensor:
        """Return logits `[B]` of states `[B, D]`."""
        state = prompt_state.detach() if self.stop_gradient else prompt_state
        weights = next(self.layers.parameters())
        logits: Tensor = self.layers(state.to(weights.dtype)).squeeze(-1).float()
        return logits
