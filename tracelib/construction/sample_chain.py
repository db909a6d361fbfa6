"""The rows of one sample through the phases: what counts of each, and what does not any more.

A verdict of `filter` and `verify` counts for the text that it was made of alone. When a sample is
written anew, its old verdicts are no rows of it, whatever was recomputed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracelib.construction.journal.input_hash import compute_input_hash
from tracelib.construction.journal.journal_row import JournalRow, Phase
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.queries import SourceQuery

if TYPE_CHECKING:
    from tracelib.construction.recipe import ConstructionRecipe

TEXT_HASH = "text_hash"
"""Field of a verdict's result: `hash_text` of the text that it was made of."""


def hash_text(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a sample's text."""
    return compute_input_hash(None, text)


@dataclass(frozen=True)
class SampleChain:
    """Reads the newest rows of a query's samples.

    Args:
        work: The work folder.
        assess_sample: Sample of phase `assess` that decides: that of the assessor in use.
        num_samples: Samples of a query in phase `generate`.
        difficulties: Difficulties whose queries are asked for rationales.
    """

    work: Journal
    assess_sample: int
    num_samples: int
    difficulties: tuple[int, ...]

    def read_assessed(self, query_id: str) -> JournalRow | None:
        """Return the row that decides a query's difficulty, or None if there is none."""
        return self.work.open_phase("assess").read_row(query_id, self.assess_sample)

    def find_difficulty(self, query_id: str) -> int | None:
        """Return a query's difficulty, or None as long as it has none."""
        row = self.read_assessed(query_id)
        return int(row.result["difficulty"]) if row is not None and row.status == "done" else None

    def read_generated(self, query_id: str, sample: int) -> JournalRow | None:
        """Return a sample's row of phase `generate`, or None if there is none."""
        return self.work.open_phase("generate").read_row(query_id, sample)

    def read_verdict(self, phase: Phase, generated: JournalRow) -> JournalRow | None:
        """Return the row of `filter` or `verify` that was made of a sample's present text.

        That of a row without a verdict, which failed, counts as well.
        """
        row = self.work.open_phase(phase).read_row(generated.query_id, generated.sample)
        is_old = (
            row is not None
            and TEXT_HASH in row.result
            and row.result[TEXT_HASH] != hash_text(generated.result["text"])
        )
        return None if is_old else row

    def iterate_generated(
        self, queries: Iterable[SourceQuery]
    ) -> Iterator[tuple[SourceQuery, JournalRow]]:
        """Yield every whole sample of the queries that are asked for rationales, in their order."""
        for query in queries:
            if self.find_difficulty(query.query_id) not in self.difficulties:
                continue
            for sample in range(self.num_samples):
                row = self.read_generated(query.query_id, sample)
                if row is not None and row.status == "done":
                    yield query, row

    def iterate_filtered(
        self, queries: Iterable[SourceQuery]
    ) -> Iterator[tuple[SourceQuery, JournalRow]]:
        """Yield the samples that passed the rules, in their order."""
        for query, generated in self.iterate_generated(queries):
            verdict = self.read_verdict("filter", generated)
            if verdict is not None and verdict.status == "done":
                yield query, generated


def build_chain(recipe: ConstructionRecipe, work: Journal) -> SampleChain:
    """Return the chain of a recipe's phases over a work folder."""
    return SampleChain(
        work,
        recipe.assess.use_sample,
        recipe.generate.num_samples,
        tuple(recipe.generate.difficulties),
    )
