"""What the tokens of a teacher cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """Price of a teacher's tokens, in any currency.

    Args:
        per_million_prompt_tokens: Of requests, 0 and above.
        per_million_completion_tokens: Of replies, 0 and above.

    Raises:
        ValueError: A price is negative.

    >>> Price(2.0, 8.0).compute_cost(prompt_tokens=500_000, completion_tokens=250_000)
    3.0
    """

    per_million_prompt_tokens: float = 0.0
    per_million_completion_tokens: float = 0.0

    def __post_init__(self) -> None:
        for name, price in (
            ("per_million_prompt_tokens", self.per_million_prompt_tokens),
            ("per_million_completion_tokens", self.per_million_completion_tokens),
        ):
            if not price >= 0:
                raise ValueError(f"price.{name} is {price}; allowed 0 and above")

    def compute_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what the tokens cost."""
        return (
            prompt_tokens * self.per_million_prompt_tokens
            + completion_tokens * self.per_million_completion_tokens
        ) / 1_000_000


class Spending:
    """Counts what was paid for: every answer, also one that is of no use.

    Args:
        price: Price of the tokens.
    """

    def __init__(self, price: Price) -> None:
        self._price = price
        self.num_answers = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count an answer."""
        self.num_answers += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    @property
    def cost(self) -> float:
        """What has been spent so far, in the price's currency."""
        return self._price.compute_cost(self.prompt_tokens, self.completion_tokens)
