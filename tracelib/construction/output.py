"""Writes what was selected as M-BEIR-CoT: Parquet files that training takes as they are.

    ROOT/<folder>/mbeir_<dataset>_<split>_rationales.parquet    a row per query that is kept
    ROOT/<folder>/dropped.parquet                               a row per reason of a drop

The first have M-BEIR's query fields, with the text as the teacher got it, the fields of
`tracelib.data.rationales`, and where a thought came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Features, List, Value
from datasets.arrow_writer import ParquetWriter

from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.queries import SourceQueries
from tracelib.construction.sample_chain import build_chain
from tracelib.construction.selection import Drop, Selected, select_rows
from tracelib.data.jsonl import DataError
from tracelib.data.layout import Layout
from tracelib.data.records import TASK_MODALITIES
from tracelib.retrieval.whole_files import remove_partial_files, replace_whole

if TYPE_CHECKING:
    from tracelib.construction.recipe import ConstructionRecipe

DROPPED_FILE = "dropped.parquet"
_BATCH_ROWS = 8192
ROW_FEATURES = Features(
    qid=Value("string"),
    query_txt=Value("string"),
    query_img_path=Value("string"),
    query_modality=Value("string"),
    task_id=Value("int8"),
    pos_cand_list=List(Value("string")),
    difficulty=Value("int8"),
    reasoning=Value("string"),
    answer=Value("string"),
    cot_conf=Value("float64"),
    source=Value("string"),
    teacher=Value("string"),
    sample=Value("int16"),
    template=Value("string"),
    prompt_hash=Value("string"),
    reasoning_tokens=Value("int32"),
    answer_tokens=Value("int32"),
)
"""Columns of a file of rows; those from `sample` on are null where there is no thought."""
DROP_FEATURES = Features(
    qid=Value("string"),
    dataset=Value("string"),
    sample=Value("int16"),
    phase=Value("string"),
    rule=Value("string"),
    detail=Value("string"),
    reasoning=Value("string"),
    answer=Value("string"),
)
"""Columns of `dropped.parquet`, those of `Drop`."""


@dataclass(frozen=True)
class OutputSettings:
    """Where the rows go.

    Args:
        folder: Folder below the data root, which `data.rationale_folder` then names.
    """

    folder: str = "rationales_cot"


@dataclass(frozen=True)
class OutputCounts:
    """What was written.

    Args:
        num_direct: Rows without a thought, by data set.
        num_reasoned: Rows with one, by data set.
        num_drops: Reasons of drops, by (data set, phase, rule).
        files: The files.
    """

    num_direct: Counter[str]
    num_reasoned: Counter[str]
    num_drops: Counter[tuple[str, str, str]]
    files: tuple[Path, ...]


def write_output(recipe: ConstructionRecipe, queries: SourceQueries, work: Journal) -> OutputCounts:
    """Select the rows of a recipe and write them; raises as `write_selected` does.

    Args:
        recipe: Says which samples count, and where the files go.
        queries: The queries, in their order.
        work: The work folder.
    """
    rows = select_rows(
        queries,
        build_chain(recipe, work),
        recipe.verify.verifier is not None,
        recipe.verify.min_confidence,
    )
    layout = Layout(queries.root, recipe.output.folder)
    return write_selected(rows, layout, recipe.data.split, queries.dataset_names)


def write_selected(
    rows: Iterable[Selected | Drop], layout: Layout, split: str, datasets: Sequence[str]
) -> OutputCounts:
    """Write rows and drops, each file in full or not at all.

    What killed runs left half written in the folder goes.

    Args:
        rows: Rows and drops.
        layout: Data root, and the folder below it.
        split: Split of the queries.
        datasets: Data sets of the queries; the file of one without a row goes.

    Raises:
        DataError: The folder is not below the root, or holds the rationales of a data set as JSON
            Lines.
    """
    folder = check_folder(layout, split, datasets)
    counts = OutputCounts(Counter(), Counter(), Counter(), ())
    remove_partial_files(folder)
    writers: dict[Path, ParquetWriter] = {}
    with ExitStack() as stack:
        dropped_path = folder / DROPPED_FILE
        dropped = stack.enter_context(_write_parquet(dropped_path, DROP_FEATURES))
        for row in rows:
            if isinstance(row, Drop):
                fields = asdict(row)
                dropped.write({"qid": fields.pop("query_id"), **fields})
                counts.num_drops[row.dataset, row.phase, row.rule] += 1
                continue
            dataset = row.query.dataset
            path = layout.parquet_rationales(dataset, split)
            if path not in writers:
                writers[path] = stack.enter_context(_write_parquet(path, ROW_FEATURES))
            writers[path].write(_format_fields(row))
            (counts.num_reasoned if row.thought else counts.num_direct)[dataset] += 1
    for dataset in datasets:
        path = layout.parquet_rationales(dataset, split)
        if path not in writers:  # of an earlier build, which kept a row
            path.unlink(missing_ok=True)
    return replace(counts, files=(dropped_path, *writers))


def check_folder(layout: Layout, split: str, datasets: Sequence[str]) -> Path:
    """Return the folder that rows are written to, which need not be there yet.

    Raises:
        DataError: It is not below the root, or holds the rationales of a data set as JSON Lines,
            beside which the reader takes no Parquet file.
    """
    name = layout.rationale_folder
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
        raise DataError(f"{name!r} is no folder below {layout.root} (output.folder)")
    for dataset in datasets:
        if (path := layout.rationales(dataset, split)).exists():
            raise DataError(
                f"{path} holds rationales already, and would stand beside the Parquet file; "
                "choose another output.folder"
            )
    return layout.root / name


def _format_fields(row: Selected) -> dict[str, Any]:
    query, thought = row.query, row.thought
    made = thought.generated.result if thought else {"source": "teacher", "model": row.assessor}
    return {
        "qid": query.query_id,
        "query_txt": query.text or None,
        "query_img_path": query.image_path,
        "query_modality": TASK_MODALITIES[query.task_id][0],
        "task_id": query.task_id,
        "pos_cand_list": list(query.positive_ids),
        "difficulty": row.difficulty,
        "reasoning": thought.reasoning if thought else None,
        "answer": thought.answer if thought else None,
        "cot_conf": thought.confidence if thought else None,
        "source": made["source"],
        "teacher": made["model"],
        "sample": thought.generated.sample if thought else None,
        "template": made.get("template"),
        "prompt_hash": made.get("prompt_hash"),
        "reasoning_tokens": thought.reasoning_tokens if thought else None,
        "answer_tokens": thought.answer_tokens if thought else None,
    }


@contextmanager
def _write_parquet(path: Path, features: Features) -> Iterator[ParquetWriter]:
    """Give the writer of a file, which is there once all is written and on disk, or not at all."""
    with (
        replace_whole(path) as partial,
        ParquetWriter(
            path=str(partial), features=features, writer_batch_size=_BATCH_ROWS
        ) as writer,
    ):
        yield writer
        writer.finalize()
