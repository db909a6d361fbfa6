"""What a thought is worth to a query: how far it lifts the first positive, and at what cost.

A label made of it says whether a query should think, judged by the model's own retrieval and not by
how hard the query looks. Shapes: Q queries, S thoughts of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EITHER = -1
"""The label of a query that is served equally well with and without a thought."""

_LABELS = {"think": 1, "direct": 0, "either": EITHER}


@dataclass(frozen=True, eq=False)
class Standing:
    """Where queries' best positives stand in their pools.

    Args:
        rank: `[..., Q]` int64, 1 + the candidates that are no positives and score strictly higher;
            0 where no positive is in the pool.
        margin: `[..., Q]` float64 cosine of the best positive less that of the best other
            candidate, -2 .. 2; NaN where no positive is in the pool.
    """

    rank: Tensor
    margin: Tensor


@dataclass(frozen=True, eq=False)
class Utility:
    """What queries gain from thinking, the mean over their thoughts.

    Args:
        rank_utility: `[Q]` float64 log2(1 + rank) without thought less that with one; above 0 where
            thinking helps, NaN where no positive is in the pool.
        margin_utility: `[Q]` float64 margin with a thought less that without.
        num_tokens: `[Q]` float64 tokens written.
        is_settled: `[Q]` whether the first positive is first of all, with and without thoughts.
    """

    rank_utility: Tensor
    margin_utility: Tensor
    num_tokens: Tensor
    is_settled: Tensor


def compute_utility(direct: Standing, thought: Standing, num_tokens: Tensor) -> Utility:
    """Return what thoughts change for their queries.

    Args:
        direct: `[Q]` without a thought.
        thought: `[S, Q]` with each of S thoughts.
        num_tokens: `[S, Q]` tokens of each thought.

    Raises:
        ValueError: Shapes do not fit, there is no thought, or pools differ.

    >>> direct = Standing(torch.tensor([3, 1]), torch.tensor([-0.25, 0.5]))
    >>> thought = Standing(torch.tensor([[1, 1]]), torch.tensor([[0.25, 0.5]]))
    >>> utility = compute_utility(direct, thought, torch.tensor([[9, 9]]))
    >>> utility.rank_utility.tolist(), utility.is_settled.tolist()
    ([1.0, 0.0], [False, True])
    """
    shapes = [tuple(t.shape) for t in (direct.rank, direct.margin, thought.rank, thought.margin)]
    expected = [direct.rank.shape, direct.rank.shape, num_tokens.shape, num_tokens.shape]
    fit = direct.rank.ndim == 1 and num_tokens.shape[1:] == direct.rank.shape and len(num_tokens)
    if not fit or shapes != [tuple(shape) for shape in expected]:
        raise ValueError(
            f"ranks and margins are {shapes}, tokens {tuple(num_tokens.shape)}; expected [Q], [Q], "
            "[S, Q], [S, Q] and [S, Q] with S >= 1"
        )
    has_positive = direct.rank > 0
    if bool(((thought.rank > 0) != has_positive).any()):
        raise ValueError("a query has a positive in its pool with a thought or without, not both")
    gain = torch.log2(1 + direct.rank.double()) - torch.log2(1 + thought.rank.double())
    return Utility(
        torch.where(has_positive, gain.mean(0), torch.nan),
        (thought.margin.double() - direct.margin.double()).mean(0),
        num_tokens.double().mean(0),
        (direct.rank == 1) & (thought.rank == 1).all(0),
    )


@dataclass(frozen=True)
class UtilityRule:
    """How utility becomes a label or a target of the router.

    The net utility, rank utility less the price of the tokens, decides by its sign. Where it is 0,
    the margin breaks the tie. With a price an equal rank is a loss already, and nothing is tied.

    Args:
        cost_weight: Rank utility that one token has to bring, >= 0. At 0.01 a thought of 50 tokens
            pays from a gain of 0.5 on, as from rank 5 to rank 3.24.
        margin_epsilon: Least change of the margin that counts, in cosine, >= 0.
        temperature: Of the soft target, above 0, in units of rank utility.

    Raises:
        ValueError: A value is out of its range.
    """

    cost_weight: float = 0.0
    margin_epsilon: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (
            ("cost_weight", self.cost_weight),
            ("margin_epsilon", self.margin_epsilon),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}, must be at least 0")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"target temperature is {self.temperature}, must be above 0")

    def compute_net_utility(self, utility: Utility) -> Tensor:
        """Return `[Q]` float64 rank utility less the price of the tokens."""
        return utility.rank_utility - self.cost_weight * utility.num_tokens

    def label(self, utility: Utility) -> Tensor:
        """Return `[Q]` int64: 1 where the query should think, 0 where not, -1 where either will do.

        At a net utility of 0: 1 where the margin grows by more than `margin_epsilon`, -1 where it
        changes by no more than that and the positive is first either way, else 0, as thinking is
        dearer. -1, too, where no positive is in the pool.

        >>> utility = Utility(*torch.tensor([[1, 0, 0, -1], [0, 0, 0, 0], [9, 9, 9, 9]]).double(),
        ...                   torch.tensor([False, True, False, False]))
        >>> UtilityRule().label(utility).tolist(), UtilityRule(0.2).label(utility).tolist()
        ([1, -1, 0, 0], [0, 0, 0, 0])
        """
        net, margin = self.compute_net_utility(utility), utility.margin_utility
        is_tied = net == 0
        thinks = (net > 0) | (is_tied & (margin > self.margin_epsilon))
        is_same = is_tied & utility.is_settled & (margin.abs() <= self.margin_epsilon)
        return torch.where(is_same | net.isnan(), EITHER, thinks.long())

    def compute_soft_target(self, utility: Utility) -> Tensor:
        """Return `[Q]` float64 probability that a query should think, -1 where nobody knows.

        It is the sigmoid of the net utility over the temperature.
        """
        net = self.compute_net_utility(utility)
        return torch.where(net.isnan(), -1.0, torch.sigmoid(net / self.temperature))


def summarize_labels(labels: Tensor, difficulty: Tensor, utility: Utility) -> dict[str, Any]:
    """Return what labels are made of, and how they agree with the annotated difficulty.

    Args:
        labels: `[Q]` of a `UtilityRule`.
        difficulty: `[Q]` 1 hard, 0 easy, -1 unknown.
        utility: What the labels are from.

    Returns:
        `num_queries`; `num_unranked`, those without a positive in their pool; `think_share`,
        `direct_share`, `either_share`; `agreement`, the share of queries with the same class both
        ways among those that have one, or None; and under `annotated`, for `hard`, `easy` and
        `unknown`, the number of each label and the mean rank utility (None of none).
    """
    is_labelled = (labels != EITHER) & (difficulty >= 0)
    annotated = {}
    for name, value in (("hard", 1), ("easy", 0), ("unknown", -1)):
        members = difficulty == value
        counts = {label: int((labels[members] == code).sum()) for label, code in _LABELS.items()}
        mean = _average(utility.rank_utility[members & ~utility.rank_utility.isnan()])
        annotated[name] = counts | {"mean_rank_utility": mean}
    shares = {f"{n}_share": _average((labels == c).double()) for n, c in _LABELS.items()}
    return {
        "num_queries": len(labels),
        "num_unranked": int(utility.rank_utility.isnan().sum()),
        **shares,
        "agreement": _average((labels == difficulty)[is_labelled].double()),
        "annotated": annotated,
    }


def _average(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
