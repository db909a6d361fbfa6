"""What a build has come to, in numbers: by data set and phase, by rule, by assessor, by model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tracelib.construction.journal.journal_row import PHASES, Phase
from tracelib.construction.journal.progress import STATES, State
from tracelib.construction.report.agreement import Agreements
from tracelib.construction.report.shown_text import clean_text
from tracelib.construction.report.tally import Tally
from tracelib.construction.selection import DropPhase

WAITING = ("pending", "failed")
"""Rules of drops that are none yet: the next start goes on with them."""
_MAX_ERRORS = 20
_MAX_ERROR = 300


@dataclass
class DatasetCounts:
    """The queries of one data set.

    Args:
        num_queries: All of them.
        num_hard: Those that need thought, by name of the assessor that says so.
        num_easy: Those that need none, likewise.
        num_kept: Rows with a rationale.
        num_direct: Rows without one.
        num_unanswered: Queries that need thought and have no rationale, and so no row.
        states: Samples by phase and state; a phase has those that the phase before let through.
        rules: Drops by phase and rule; a sample has one for each rule that it broke.
    """

    num_queries: int = 0
    num_hard: Counter[str] = field(default_factory=Counter)
    num_easy: Counter[str] = field(default_factory=Counter)
    num_kept: int = 0
    num_direct: int = 0
    num_unanswered: int = 0
    states: dict[Phase, Counter[State]] = field(
        default_factory=lambda: {phase: Counter() for phase in PHASES}
    )
    rules: Counter[tuple[DropPhase, str]] = field(default_factory=Counter)

    @property
    def num_rows(self) -> int:
        """Rows of the output."""
        return self.num_kept + self.num_direct

    def to_json(self) -> dict[str, Any]:
        """Return the counts by their names."""
        return {
            **{name: value for name, value in vars(self).items() if isinstance(value, int)},
            "num_rows": self.num_rows,
            "num_hard": dict(self.num_hard),
            "num_easy": dict(self.num_easy),
            "states": {
                phase: {state: counts[state] for state in STATES}
                for phase, counts in self.states.items()
            },
            "rules": _nest_rules(self.rules),
        }


@dataclass
class Usage:
    """What a model answered in a phase, every attempt ever made.

    Answers that are none, such as empty and cut ones and those of another model, are in no journal
    and not counted, though a vendor may charge for them.

    Args:
        num_replies: Whole replies, also those that could not be read.
        prompt_tokens: Tokens of the requests.
        completion_tokens: Tokens of the replies.
        cost: What the tokens cost at the price of their teacher, or None if it has none.
    """

    num_replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


@dataclass
class Summary:
    """A build in numbers.

    Args:
        assessor: Name of the assessor that decides.
        datasets: By name.
        agreements: Of every pair of assessors.
        reasoning_tokens: Lengths of all thoughts that have their tags, and of the kept ones.
        answer_tokens: Lengths of answers, likewise.
        confidence: Confidences of the verifier in percent, likewise.
        usage: By phase and name of the model.
        errors: Errors of quarantined rows, by phase and text, with their number.
        writers: Rows with a rationale by source, `teacher` or `oracle`, and name of the model.
    """

    assessor: str
    datasets: dict[str, DatasetCounts]
    agreements: Agreements
    reasoning_tokens: tuple[Tally, Tally] = field(default_factory=lambda: (Tally(), Tally()))
    answer_tokens: tuple[Tally, Tally] = field(default_factory=lambda: (Tally(), Tally()))
    confidence: tuple[Tally, Tally] = field(default_factory=lambda: (Tally(), Tally()))
    usage: dict[tuple[Phase, str], Usage] = field(default_factory=lambda: defaultdict(Usage))
    errors: dict[Phase, Counter[str]] = field(
        default_factory=lambda: {phase: Counter() for phase in PHASES}
    )
    writers: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def histograms(self) -> dict[str, tuple[Tally, Tally]]:
        """Every pair of tallies, by what its values are."""
        return {
            "Reasoning, tokens": self.reasoning_tokens,
            "Answer, tokens": self.answer_tokens,
            "Verifier confidence, percent": self.confidence,
        }

    @property
    def cost(self) -> float | None:
        """What all tokens cost, or None if no price is known."""
        costs = [usage.cost for usage in self.usage.values() if usage.cost is not None]
        return sum(costs) if costs else None

    def count(self, name: str) -> int:
        """Return a count of `DatasetCounts` over all data sets, by its name."""
        return sum(int(getattr(counts, name)) for counts in self.datasets.values())

    def count_states(self, phase: Phase) -> Counter[State]:
        """Return the samples of a phase by state."""
        return sum_counters(counts.states[phase] for counts in self.datasets.values())

    def count_rules(self) -> Counter[tuple[DropPhase, str]]:
        """Return the drops by phase and rule."""
        return sum_counters(counts.rules for counts in self.datasets.values())

    def add_error(self, phase: Phase, error: str) -> None:
        """Count the error of a quarantined row; of many different ones the first few are named."""
        found, text = self.errors[phase], clean_text(error, _MAX_ERROR)
        found[text if text in found or len(found) < _MAX_ERRORS else "other errors"] += 1

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "assessor": self.assessor,
            "datasets": {name: counts.to_json() for name, counts in self.datasets.items()},
            "agreements": [pair.to_json() for pair in self.agreements.pairs],
            "histograms": {
                name: {"all": every.to_json(), "kept": kept.to_json()}
                for name, (every, kept) in self.histograms.items()
            },
            "rules": _nest_rules(self.count_rules()),
            "usage": [
                {"phase": phase, "model": model, **vars(usage)}
                for (phase, model), usage in sorted(self.usage.items())
            ],
            "cost": self.cost,
            "writers": [
                {"source": source, "model": model, "num_rows": count}
                for (source, model), count in sorted(self.writers.items())
            ],
            "quarantined": {
                phase: [
                    {"error": error, "num_rows": count} for error, count in errors.most_common()
                ]
                for phase, errors in self.errors.items()
            },
        }


def sum_counters(counters: Iterable[Mapping[Any, int]]) -> Counter[Any]:
    """Return the sum of counts."""
    total: Counter[Any] = Counter()
    for counts in counters:
        total.update(counts)
    return total


def _nest_rules(rules: Mapping[tuple[DropPhase, str], int]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (phase, rule), count in sorted(rules.items()):
        nested.setdefault(phase, {})[rule] = count
    return nested
