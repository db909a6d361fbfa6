"""What a build leaves for people: numbers, a card, a page of samples and a TensorBoard log.

WORK/report.json                  everything counted, with provenance
WORK/sample_sheet.html            what was kept and dropped, to look at
WORK/tensorboard/                 counts, histograms, samples
ROOT/<output.folder>/README.md    the card of the data set
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.queries import SourceQueries
from tracelib.construction.report.card import write_card
from tracelib.construction.report.charts import write_charts
from tracelib.construction.report.sample_gathering import gather_samples
from tracelib.construction.report.sample_sheet import Overview, write_sample_sheet
from tracelib.construction.report.summary import WAITING, Summary
from tracelib.construction.report.survey import Survey
from tracelib.data.layout import Layout
from tracelib.data.mbeir import MBEIRReader
from tracelib.retrieval.runs import collect_provenance
from tracelib.retrieval.whole_files import write_whole

if TYPE_CHECKING:
    from tracelib.construction.recipe import ConstructionRecipe

_PROMPT_POLICY = "fixed"
"""How the instructions of source queries are chosen."""


def write_report(
    recipe: ConstructionRecipe,
    queries: SourceQueries,
    work: Journal,
    config: Mapping[str, Any],
) -> Summary:
    """Go over a work folder and write all that there is to report; return the numbers.

    It can be called at any time: what is not there yet is counted as missing.

    Args:
        recipe: The build.
        queries: Its queries.
        work: Its work folder.
        config: The resolved recipe as plain values, for the provenance.
    """
    survey = Survey(recipe, queries, work)
    summary, split = survey.summary, recipe.data.split
    groups = gather_samples(survey)
    reader = MBEIRReader(recipe.data.root, recipe.data.cache_dir)
    provenance = collect_provenance(config, reader.file_hashes(split), _PROMPT_POLICY, "")
    del provenance["dtype"]  # nothing is computed here
    content = {"provenance": provenance, "summary": summary.to_json()}
    write_whole(work.folder / "report.json", json.dumps(content, indent=1) + "\n")
    layout = Layout(recipe.data.root, recipe.output.folder)
    write_card(layout, split, summary, provenance)
    overview = _make_overview(recipe, summary)
    write_sample_sheet(work.folder / "sample_sheet.html", overview, groups, queries.root)
    write_charts(work.folder / "tensorboard", summary, groups, queries.root)
    return summary


def _make_overview(recipe: ConstructionRecipe, summary: Summary) -> Overview:
    hard = sum(found.num_hard[summary.assessor] for found in summary.datasets.values())
    counts = {
        "queries": summary.count("num_queries"),
        "of them hard": hard,
        "rows with a rationale": summary.count("num_kept"),
        "direct rows": summary.count("num_direct"),
        "hard queries without a row": summary.count("num_unanswered"),
    }
    drops: dict[str, int] = {}
    for (_, rule), count in summary.count_rules().items():
        if rule not in WAITING:
            drops[rule] = drops.get(rule, 0) + count
    tree = recipe.data.root.resolve().name
    lead = (
        f"Rationales for the queries of {tree}, split {recipe.data.split}: a few of what was kept, "
        "and of what was dropped by each rule."
    )
    return Overview(recipe.output.folder, lead, counts, drops, summary.histograms)
