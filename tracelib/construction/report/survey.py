"""Goes over a work folder and gathers what there is to report, in a memory that does not grow.

Two passes over the queries, one for how far each phase is and one for what was selected, and one
over the journals for what was paid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tracelib.construction.assess import number_assessor, read_assessed
from tracelib.construction.journal.journal_row import PHASES, JournalRow, Phase
from tracelib.construction.journal.progress import State
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.prices import find_recipe_prices
from tracelib.construction.queries import SourceQueries, SourceQuery
from tracelib.construction.report.agreement import Agreements
from tracelib.construction.report.reservoir import Reservoir
from tracelib.construction.report.summary import WAITING, DatasetCounts, Summary
from tracelib.construction.sample_chain import build_chain
from tracelib.construction.selection import Drop, Selected, select_rows
from tracelib.construction.teachers.price import Price
from tracelib.construction.verification import IS_REREAD

if TYPE_CHECKING:
    from tracelib.construction.recipe import ConstructionRecipe

_NUM_KEPT, _NUM_DIRECT, _NUM_DROPPED = 40, 12, 5
_NO_MODEL = "unnamed"

Pick = Selected | Drop


class Survey:
    """All that a report needs of a build.

    Args:
        recipe: The build.
        queries: Its queries.
        work: Its work folder.

    Attributes:
        recipe: As given.
        queries: As given.
        chain: Rows of its samples.
        summary: The numbers.
        picks: Examples of what was kept, by data set, of drops, by rule, and of direct rows.
    """

    def __init__(self, recipe: ConstructionRecipe, queries: SourceQueries, work: Journal) -> None:
        self.recipe, self.queries, self.chain = recipe, queries, build_chain(recipe, work)
        assessors = tuple(recipe.assess.assessors)
        self._assessors, self._has_verifier = assessors, recipe.verify.verifier is not None
        datasets = {name: DatasetCounts() for name in queries.dataset_names}
        self.summary = Summary(recipe.assess.use, datasets, Agreements(assessors))
        self._reservoirs: dict[tuple[int, str], Reservoir[Pick]] = {}
        for query in queries:
            self._count_query(query)
        self._select()
        _count_usage(self.summary, work, find_recipe_prices(recipe))

    @property
    def picks(self) -> dict[str, list[Pick]]:
        """Examples by what they are an example of: first the kept, then the drops."""
        return {
            name: self._reservoirs[place, name].items for place, name in sorted(self._reservoirs)
        }

    def _count_query(self, query: SourceQuery) -> None:
        counts = self.summary.datasets[query.dataset]
        counts.num_queries += 1
        difficulties = {}
        for name in self._assessors:
            row = read_assessed(self.recipe.assess, name, query, self.chain.work)
            self._count_row("assess", query, number_assessor(name), row)
            if row is not None and row.status == "done":
                difficulties[name] = int(row.result["difficulty"])
                (counts.num_hard if difficulties[name] else counts.num_easy)[name] += 1
        self.summary.agreements.add(difficulties)
        if difficulties.get(self.recipe.assess.use) in self.chain.difficulties:
            for sample in range(self.chain.num_samples):
                self._count_sample(query, sample)

    def _count_sample(self, query: SourceQuery, sample: int) -> None:
        generated = self.chain.read_generated(query, sample)
        self._count_row("generate", query, sample, generated)
        if generated is None or generated.status != "done":
            return
        filtered = self.chain.read_filtered(query, generated)
        self._count_row("filter", query, sample, filtered)
        if filtered is None or not filtered.result:
            return
        for name in ("reasoning_tokens", "answer_tokens"):
            if (num_tokens := filtered.result[name]) is not None:
                getattr(self.summary, name)[0].add(num_tokens)
        if filtered.status == "done" and self._has_verifier:
            verified = self.chain.read_verified(query, generated)
            self._count_row("verify", query, sample, verified)
            if verified is not None and verified.status in ("done", "dropped"):
                self.summary.confidence[0].add(_to_percent(verified.result["confidence"]))

    def _count_row(
        self, phase: Phase, query: SourceQuery, sample: int, row: JournalRow | None
    ) -> None:
        state: State = "missing"
        if row is not None:
            state = row.status
        elif self.chain.work.open_phase(phase).find_entry(query.query_id, sample) is not None:
            state = "stale"
        self.summary.datasets[query.dataset].states[phase][state] += 1
        if row is not None and row.status == "quarantined":
            self.summary.add_error(phase, str(row.error))

    def _select(self) -> None:
        rows = select_rows(
            self.queries, self.chain, self._has_verifier, self.recipe.verify.min_confidence
        )
        num_kept = max(3, _NUM_KEPT // max(1, len(self.summary.datasets)))
        for row in rows:
            if isinstance(row, Drop):
                self._count_drop(row)
                continue
            dataset = row.query.dataset
            counts = self.summary.datasets[dataset]
            if row.thought is None:
                counts.num_direct += 1
                self._offer(2, "direct", row, _NUM_DIRECT)
                continue
            counts.num_kept += 1
            self.summary.reasoning_tokens[1].add(row.thought.reasoning_tokens)
            self.summary.answer_tokens[1].add(row.thought.answer_tokens)
            if row.thought.confidence is not None:
                self.summary.confidence[1].add(_to_percent(row.thought.confidence))
            written = row.thought.generated.result
            self.summary.writers[str(written["source"]), str(written["model"])] += 1
            self._offer(0, f"kept {dataset}", row, num_kept)

    def _count_drop(self, drop: Drop) -> None:
        counts = self.summary.datasets[drop.dataset]
        counts.rules[drop.phase, drop.rule] += 1
        counts.num_unanswered += drop.rule == "unanswered"
        if drop.rule not in WAITING:
            self._offer(1, f"{drop.phase} {drop.rule}", drop, _NUM_DROPPED)

    def _offer(self, place: int, name: str, pick: Pick, size: int) -> None:
        if (place, name) not in self._reservoirs:
            self._reservoirs[place, name] = Reservoir(size, f"{place} {name}")
        self._reservoirs[place, name].offer(pick)


def _to_percent(confidence: float) -> int:
    """Return a confidence in whole percent, rounded down as a threshold would."""
    return int(confidence * 100 + 1e-9)


def _count_usage(summary: Summary, work: Journal, prices: Mapping[str, Price]) -> None:
    """Count what was paid for: every whole reply ever written down, read or not."""
    for phase in PHASES:
        for row in work.open_phase(phase).read_history():
            if "prompt_tokens" in row.result and IS_REREAD not in row.result:
                usage = summary.usage[phase, str(row.result.get("model", _NO_MODEL))]
                usage.num_replies += 1
                usage.prompt_tokens += row.result["prompt_tokens"]
                usage.completion_tokens += row.result["completion_tokens"]
    for (_, model), usage in summary.usage.items():
        if model in prices:
            usage.cost = prices[model].compute_cost(usage.prompt_tokens, usage.completion_tokens)
