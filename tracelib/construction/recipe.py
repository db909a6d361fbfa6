"""A recipe of M-BEIR-CoT: everything that a build depends on, as one tree of settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tracelib.construction.assess import AssessSettings
from tracelib.construction.estimate import EstimateSettings
from tracelib.construction.filtering import FilterSettings
from tracelib.construction.generate import GenerateSettings
from tracelib.construction.journal.journal_row import MAX_ATTEMPT
from tracelib.construction.output import OutputSettings
from tracelib.construction.queries import QuerySettings
from tracelib.construction.rules.rationale_check import RuleLimits
from tracelib.construction.verification import VerifySettings


@dataclass(frozen=True)
class ConstructionRecipe:
    """What is built from what, by whom, and where it goes.

    Args:
        data: Which queries.
        work: Work folder: what was asked, answered and judged, to go on with. One per split.
        assess: Who says which queries need thought.
        generate: Who writes the rationales.
        rules: Thresholds of the rules.
        filter: What the rules count by.
        verify: Who holds the answers against their targets.
        output: Where the rows go.
        max_attempts: Attempts at a row before it is quarantined, 1 and above, each with the
            teacher's own retries.
        retry_quarantined: Whether rows that an earlier run gave up are tried again.
        estimate: What a dry run reckons with.

    Raises:
        ValueError: `max_attempts` is out of its range.
    """

    data: QuerySettings
    work: Path
    assess: AssessSettings
    generate: GenerateSettings
    rules: RuleLimits = field(default_factory=RuleLimits)
    filter: FilterSettings = field(default_factory=FilterSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    max_attempts: int = 3
    retry_quarantined: bool = False
    estimate: EstimateSettings = field(default_factory=EstimateSettings)

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= MAX_ATTEMPT:
            raise ValueError(
                f"max_attempts is {self.max_attempts}; allowed 1 .. {MAX_ATTEMPT} (max_attempts)"
            )
