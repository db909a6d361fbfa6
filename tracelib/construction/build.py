"""Runs the phases of a build over its work folder, each from where it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console

from tracelib.construction.assess import TeacherAssessor, run_assess
from tracelib.construction.filtering import run_filter
from tracelib.construction.generate import run_generate
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.output import check_folder, write_output
from tracelib.construction.prices import find_teacher_price
from tracelib.construction.progress_display import ProgressDisplay
from tracelib.construction.queries import SourceQueries
from tracelib.construction.recipe import ConstructionRecipe
from tracelib.construction.report.report import write_report
from tracelib.construction.report.tables import print_summary
from tracelib.construction.sample_chain import build_chain
from tracelib.construction.teachers.price import TeacherPrice
from tracelib.construction.verification import run_verify
from tracelib.data.layout import Layout

Step = Literal["assess", "generate", "filter"]


class Build:
    """The phases of a build.

    Args:
        recipe: What is built.
        queries: Its queries.
        work: Its work folder.

    Raises:
        DataError: The output folder cannot take the rows.
        ValueError: A template or the tokenizer of the rules is missing or broken.
    """

    def __init__(self, recipe: ConstructionRecipe, queries: SourceQueries, work: Journal) -> None:
        self._recipe, self._queries, self._work = recipe, queries, work
        # What later phases need is looked at now, and not after days of asking.
        self._chain = build_chain(recipe, work)
        layout = Layout(queries.root, recipe.output.folder)
        check_folder(layout, recipe.data.split, queries.dataset_names)

    async def run(self, steps: Sequence[Step], display: ProgressDisplay) -> None:
        """Run some phases, in order.

        Args:
            steps: Which.
            display: Shows how far they are.

        Raises:
            TeacherDownError: A teacher answers nothing any more; what is done is kept.
            JournalError: A row cannot be written.
            ValueError: A query has no template, or an assessor cannot judge it.
        """
        runs: Mapping[Step, Callable[[ProgressDisplay], Awaitable[None]]] = {
            "assess": self._run_assess,
            "generate": self._run_generate,
            "filter": self._run_filter,
        }
        for step in steps:
            await runs[step](display)
            self._work.sync()

    async def _run_assess(self, display: ProgressDisplay) -> None:
        settings, attempts = self._recipe.assess, self._attempts
        prices = {
            name: find_teacher_price(assessor.teacher)
            for name, assessor in settings.assessors.items()
            if isinstance(assessor, TeacherAssessor)
        }
        await run_assess(
            settings,
            self._queries,
            self._work,
            lambda name: display.watch(f"assess: {name}", prices.get(name, TeacherPrice())),
            *attempts,
        )

    async def _run_generate(self, display: ProgressDisplay) -> None:
        on_progress = display.watch("generate", find_teacher_price(self._recipe.generate.teacher))
        await run_generate(
            self._chain.generate, self._queries, self._work, on_progress, *self._attempts
        )

    async def _run_filter(self, display: ProgressDisplay) -> None:
        chain, verify = self._chain, self._recipe.verify
        await run_filter(self._queries, chain, display.watch("filter"))
        if verify.verifier is not None:
            on_progress = display.watch("verify", find_teacher_price(verify.verifier.teacher))
            await run_verify(self._queries, chain, verify.concurrency, on_progress, *self._attempts)

    @property
    def _attempts(self) -> tuple[int, bool]:
        return self._recipe.max_attempts, self._recipe.retry_quarantined

    def write(self, config: Mapping[str, Any], console: Console) -> None:
        """Select the rows, write them and all that there is to report, and print the numbers.

        It can be called at any time: what is not there yet is counted as missing.

        Args:
            config: The recipe as plain values.
            console: Where to print.

        Raises:
            DataError: The output folder cannot take the rows.
        """
        counts = write_output(self._recipe, self._queries, self._work)
        summary = write_report(self._recipe, self._queries, self._work, config)
        print_summary(console, summary)
        num_reasoned = counts.num_reasoned.total()
        num_rows = num_reasoned + counts.num_direct.total()
        console.print(
            f"{num_rows:,} rows, {num_reasoned:,} with a rationale: "
            f"{self._queries.root / self._recipe.output.folder}\n"
            f"report and sample sheet: {self._work.folder}",
            highlight=False,
            soft_wrap=True,
        )
