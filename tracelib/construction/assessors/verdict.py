"""An assessor's verdict on a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Difficulty = Literal[0, 1]


@dataclass(frozen=True)
class Assessment:
    """Whether a query needs thought, and why.

    Args:
        difficulty: 1 when it needs thought, 0 when not.
        reason: Why, in a few words.
    """

    difficulty: Difficulty
    reason: str

    def format_result(self, by: str) -> dict[str, Any]:
        """Return the result of a row, by the assessor's name."""
        return {"difficulty": self.difficulty, "reason": self.reason, "by": by}
