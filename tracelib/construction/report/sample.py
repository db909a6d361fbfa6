"""One query and what became of it, with all that a reader wants to see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Verdict = Literal["kept", "dropped", "quarantined", "failed", "pending", "unanswered", "direct"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Side:
    """A query or its target.

    Args:
        id: Its id.
        text: Its text, `""` for none.
        image_path: Path of its picture relative to the data root, or None.
    """

    id: str
    text: str
    image_path: str | None


@dataclass(frozen=True)
class Writing:
    """What a teacher wrote, and how.

    Args:
        raw: Its reply.
        reasoning: The reasoning in it, or None where its tags cannot be read.
        answer: The answer in it, or None likewise.
        teacher: Name of the model.
        template: Name of the prompt template.
        source: `teacher` saw the query only, `oracle` saw the target too.
        reasoning_tokens: Length of the reasoning, or None if it was not counted.
        answer_tokens: Length of the answer, or None likewise.
    """

    raw: str
    reasoning: str | None
    answer: str | None
    teacher: str
    template: str
    source: str
    reasoning_tokens: int | None
    answer_tokens: int | None


@dataclass(frozen=True)
class Judgement:
    """What the verifier said.

    Args:
        is_consistent: Its decision.
        confidence: Its confidence, 0 .. 1.
        reason: Why.
    """

    is_consistent: bool
    confidence: float
    reason: str


@dataclass(frozen=True)
class Reason:
    """Why a sample is not in the output.

    Args:
        rule: Name of the rule.
        detail: What was found.
    """

    rule: str
    detail: str


@dataclass(frozen=True)
class Sample:
    """One sample of one query, whatever became of it.

    Args:
        verdict: What became of it.
        dataset: Name of the dataset.
        task_id: M-BEIR task.
        sample: Which of the query's samples.
        instruction: The query's instruction.
        query: The query.
        target: Its target.
        difficulty: `easy`, `hard` or `not assessed`, with the assessor's reason.
        writing: What the teacher wrote, or None for nothing.
        judgement: What the verifier said, or None if it was not asked.
        reasons: Why it is not in the output; none for one that is.
    """

    verdict: Verdict
    dataset: str
    task_id: int
    sample: int
    instruction: str
    query: Side
    target: Side
    difficulty: str
    writing: Writing | None
    judgement: Judgement | None
    reasons: tuple[Reason, ...]

    @property
    def rules(self) -> list[str]:
        """Rules that it broke, each once; a verdict that is its own rule has none."""
        rules = dict.fromkeys(reason.rule for reason in self.reasons)
        return [rule for rule in rules if rule != self.verdict]
