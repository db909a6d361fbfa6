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


@dataclass(frozen=True)
class TeacherPrice:
    """What a teacher's tokens cost, or cost at most.

    Args:
        price: Price of the tokens; where several models of different prices write them, the
            highest.
        is_bound: Whether there are several, so that a cost is an upper bound.
    """

    price: Price = Price()
    is_bound: bool = False


def format_cost(cost: float, is_bound: bool) -> str:
    """Return a cost as it is printed.

    >>> format_cost(1234.5, is_bound=True)
    'at most 1,234.50'
    """
    return f"{'at most ' if is_bound else ''}{cost:,.2f}"
