"""Shares of tasks in an epoch, written as in the formula."""

from __future__ import annotations

from fractions import Fraction


def compute_shares(sizes, weights=None, temperature=1.0):
    """Return (weight x size) ** (1 / temperature) of each task over the sum of all."""
    weights = weights or {}
    logs = {task: Fraction(weights.get(task, 1.0)) * size for task, size in sizes.items()}
    largest = max(logs.values())
    powers = {task: float(mass / largest) ** (1 / temperature) for task, mass in logs.items()}
    return {task: power / sum(powers.values()) for task, power in powers.items()}
