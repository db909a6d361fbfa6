"""How the tokens of a thought are drawn. Shapes: B queries, S samples of each, V vocabulary."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Greedy by default; with a temperature, tokens are drawn.

    What is drawn depends on seed, query and sample only, not on what else is in the batch.

    Args:
        temperature: Divides the logits, above 0; 0 takes the most likely token.
        num_samples: Thoughts per query, 1 and above; more than 1 needs a temperature.
        seed: Of the random numbers.

    Raises:
        ValueError: A value is out of its range.
    """

    temperature: float = 0.0
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, must be finite and at least 0")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}, must be at least 1")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.num_samples} samples at temperature 0 are all the same: give a temperature"
            )

    def draw_uniforms(self, query_ids: Tensor, num_tokens: int, device: torch.device) -> Tensor:
        """Return `[B * S, num_tokens]` numbers in 0 .. 1, query by query; zeros if greedy."""
        ids = query_ids.tolist()
        if self.temperature == 0:
            return torch.zeros(len(ids), num_tokens, device=device)
        rows = []
        for query_id in ids:
            for sample in range(self.num_samples):
                name = f"{self.seed} {query_id} {sample}".encode()
                seed = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "little")
                random = torch.Generator().manual_seed(seed)
                rows.append(torch.rand(num_tokens, generator=random))
        return torch.stack(rows).to(device)

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Return `[B]` tokens, the most likely or, by `uniforms` `[B]`, drawn from `[B, V]`."""
        logits = logits.float()  # argmax of bfloat16 is slow on a CPU
        if self.temperature == 0:
            return logits.argmax(-1)
        below = logits - logits.amax(-1, keepdim=True)  # no overflow at a low one
        mass = torch.softmax(below / self.temperature, dim=-1).cumsum(-1)
        return (mass <= uniforms[:, None] * mass[:, -1:]).sum(-1).clamp(max=mass.shape[1] - 1)
