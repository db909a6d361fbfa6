"""Think-rate curves query by query and order by order, in fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, permutations


def score_first(direct: Sequence, thought: Sequence, weights: Sequence, order: Sequence) -> list:
    """Return the weighted mean when the first 0, 1 .. all queries of an order think."""
    curve = []
    for num_thinking in range(len(order) + 1):
        thinking = set(order[:num_thinking])
        scores = [
            t if i in thinking else d for i, (d, t) in enumerate(zip(direct, thought, strict=True))
        ]
        curve.append(sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights))
    return curve


def average_orders(direct: Sequence, thought: Sequence, weights: Sequence, priority: Sequence):
    """Return the mean curve over all orders in which no query comes before a higher one."""
    orders = [
        order
        for order in permutations(range(len(priority)))
        if all(priority[a] >= priority[b] for a, b in pairwise(order))
    ]
    curves = [score_first(direct, thought, weights, order) for order in orders]
    return [sum(points) / Fraction(len(curves)) for points in zip(*curves, strict=True)]
