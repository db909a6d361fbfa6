"""The rows of one sample through the phases: what counts of each, and what does not any more.

A row counts for the input that it was made from alone. When a prompt, a teacher or a limit changed,
or a sample was written anew, older rows are history, whether or not others have taken their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracelib.construction.assess import AssessSettings, find_difficulty, read_assessed
from tracelib.construction.filtering import RuleFilter
from tracelib.construction.generate import GeneratePhase
from tracelib.construction.journal.journal_row import JournalRow
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.queries import SourceQuery
from tracelib.construction.rules.tags import has_tags
from tracelib.construction.verification import Verification

if TYPE_CHECKING:
    from tracelib.construction.recipe import ConstructionRecipe


@dataclass(frozen=True)
class SampleChain:
    """Reads the rows of a query's samples, as far as they are of the present input.

    Args:
        work: The work folder.
        assess: Who says which queries need thought.
        generate: How samples are asked for.
        rules: What holds them against the rules.
        verification: What holds them against their targets, or None if nothing does.
    """

    work: Journal
    assess: AssessSettings
    generate: GeneratePhase
    rules: RuleFilter
    verification: Verification | None

    @property
    def num_samples(self) -> int:
        """Samples of a query in phase `generate`."""
        return self.generate.settings.num_samples

    @property
    def difficulties(self) -> tuple[int, ...]:
        """Difficulties whose queries are asked for rationales."""
        return tuple(self.generate.settings.difficulties)

    def read_assessed(self, query: SourceQuery) -> JournalRow | None:
        """Return the row that decides a query's difficulty, or None if there is none."""
        return read_assessed(self.assess, self.assess.use, query, self.work)

    def read_generated(self, query: SourceQuery, sample: int) -> JournalRow | None:
        """Return a sample's row of phase `generate`, or None if there is none."""
        input_hash = self.generate.hash_input(query, sample)
        return self.work.open_phase("generate").read_present(query.query_id, sample, input_hash)

    def read_filtered(self, query: SourceQuery, generated: JournalRow) -> JournalRow | None:
        """Return the rules' verdict on a whole sample, or None if there is none."""
        return self.work.open_phase("filter").read_present(
            query.query_id, generated.sample, self.rules.hash_input(query, generated)
        )

    def read_verified(self, query: SourceQuery, generated: JournalRow) -> JournalRow | None:
        """Return the verifier's verdict on a whole sample, or None if there is none."""
        if self.verification is None or not has_tags(generated.result["text"]):
            return None
        return self.work.open_phase("verify").read_present(
            query.query_id, generated.sample, self.verification.hash_input(query, generated)
        )

    def iterate_generated(
        self, queries: Iterable[SourceQuery]
    ) -> Iterator[tuple[SourceQuery, JournalRow]]:
        """Yield every whole sample of the queries that are asked for rationales, in their order."""
        for query in queries:
            if find_difficulty(self.assess, query, self.work) not in self.difficulties:
                continue
            for sample in range(self.num_samples):
                row = self.read_generated(query, sample)
                if row is not None and row.status == "done":
                    yield query, row

    def iterate_filtered(
        self, queries: Iterable[SourceQuery]
    ) -> Iterator[tuple[SourceQuery, JournalRow]]:
        """Yield the samples that passed the rules, in their order."""
        for query, generated in self.iterate_generated(queries):
            verdict = self.read_filtered(query, generated)
            if verdict is not None and verdict.status == "done":
                yield query, generated


def build_chain(recipe: ConstructionRecipe, work: Journal) -> SampleChain:
    """Return the chain of a recipe's phases over a work folder.

    Raises:
        ValueError: A template or the tokenizer of the rules is missing or broken.
    """
    generate, verify = GeneratePhase(recipe.generate, recipe.assess), recipe.verify
    verification = None
    if verify.verifier is not None:
        verification = Verification(verify.verifier, verify.min_confidence)
    rules = RuleFilter(recipe.rules, recipe.filter, generate.templates)
    return SampleChain(work, recipe.assess, generate, rules, verification)
