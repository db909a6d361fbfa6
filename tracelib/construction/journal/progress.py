"""How far a phase is: every query and sample in exactly one state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["missing", "stale", "failed", "done", "dropped", "quarantined"]
STATES: tuple[State, ...] = get_args(State)
DUE_STATES: frozenset[State] = frozenset({"missing", "stale", "failed"})
"""What is to be computed: there is no row, or one of another input, or one to be tried again."""


@dataclass(frozen=True)
class Progress:
    """How many rows of a phase are in each state.

    Args:
        num_missing: Without a row.
        num_stale: Whose newest row was made from another input.
        num_failed: That failed, and are to be tried again.
        num_done: Done, and to be used.
        num_dropped: Done, with a verdict against the sample.
        num_quarantined: Given up, with their errors.
    """

    num_missing: int
    num_stale: int
    num_failed: int
    num_done: int
    num_dropped: int
    num_quarantined: int

    @property
    def num_due(self) -> int:
        """Rows still to be computed."""
        return self.num_missing + self.num_stale + self.num_failed

    @property
    def num_rows(self) -> int:
        """All rows of the phase."""
        return self.num_due + self.num_done + self.num_dropped + self.num_quarantined


def make_progress(counts: Counter[State]) -> Progress:
    """Return the progress that a count of each state makes.

    >>> make_progress(Counter({"done": 3, "failed": 1})).num_due
    1
    """
    return Progress(**{f"num_{state}": counts[state] for state in STATES})
