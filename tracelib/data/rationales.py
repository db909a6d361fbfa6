"""M-BEIR-CoT: one rationale row per query, as JSON Lines beside an M-BEIR tree.

The file `rationales/mbeir_<dataset>_<split>_rationales.jsonl` holds rows such as (one line each)

    {"qid": "10:1", "task_id": 7, "difficulty": 1, "reasoning": "0 red star blue moon / ...",
     "answer": "2 blue moon ...", "cot_conf": 0.93, "source": "teacher",
     "teacher": "Qwen2.5-VL-72B-Instruct"}

`difficulty` is 1 when the query needs thought, 0 when not and -1 when it does not matter; a row of
difficulty 1 has both texts, another one both or none. `source` is `teacher` for a writer that saw
the query only and `oracle` for one that saw the target too; `teacher` names the writer. `cot_conf`
is the writer's confidence, 0 .. 1, or null.

A row of source `self` has the thought of the model that is being trained, as it wrote it: all of it
in `reasoning`, `answer` null, whatever the difficulty. Other keys of a row are not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tracelib.data.jsonl import Row, strip_control_tokens, write_rows
from tracelib.data.records import MAX_QUERY_NUMBER, parse_id
from tracelib.types import Rationale, RationaleSource

SOURCES: tuple[RationaleSource, ...] = get_args(RationaleSource)
"""Who writes rationales; the column `source` of their table holds a place in this."""


@dataclass(frozen=True)
class RationaleRow:
    """A row of M-BEIR-CoT.

    Args:
        query_id: `D:N` of the query, unique within a split only.
        task_id: M-BEIR task of the query.
        difficulty: 1 when the query needs thought, 0 when not, -1 when it does not matter.
        reasoning: The thought, or None.
        answer: Its last line, the description of what is sought, or None.
        confidence: The writer's confidence, 0 .. 1, or None.
        source: `teacher` saw the query only, `oracle` saw the target too, `self` is the model that
            is being trained.
        teacher: Name of the writer.
    """

    query_id: str
    task_id: int
    difficulty: int
    reasoning: str | None
    answer: str | None
    confidence: float | None
    source: RationaleSource
    teacher: str

    @property
    def rationale(self) -> Rationale | None:
        """The thought, or None where there is none."""
        if self.reasoning is None:
            return None
        return Rationale(self.reasoning, self.answer or "", self.source)

    def format_fields(self) -> dict[str, Any]:
        """Return the row as it is written."""
        return {
            "qid": self.query_id,
            "task_id": self.task_id,
            "difficulty": self.difficulty,
            "reasoning": self.reasoning,
            "answer": self.answer,
            "cot_conf": self.confidence,
            "source": self.source,
            "teacher": self.teacher,
        }


def write_rationales(path: Path, rows: Iterable[RationaleRow]) -> None:
    """Write rationale rows to a file, in full or not at all."""
    write_rows(path, (row.format_fields() for row in rows))


def parse_rationale(row: Row) -> RationaleRow:
    """Parse a rationale row.

    Raises:
        DataError: It breaks the format given at the top of this module.
    """
    source = row.require("source")
    if source not in SOURCES:
        raise row.error(f"source {source!r} is none of {list(SOURCES)}")
    difficulty = row.require_int("difficulty", range(-1, 2))
    reasoning, answer = (
        strip_control_tokens(row.get_text(name)).strip() for name in ("reasoning", "answer")
    )
    is_whole = bool(reasoning) == bool(answer) and (difficulty < 1 or bool(answer))
    if source != "self" and not is_whole:
        raise row.error(
            f"difficulty {difficulty}, reasoning {reasoning[:40]!r}, answer {answer[:40]!r}: "
            "difficulty 1 needs both texts, another one both or none"
        )
    if source == "self" and answer:
        raise row.error(f"answer {answer[:40]!r} in a row of source 'self': all is in reasoning")
    confidence = row.fields.get("cot_conf")
    if confidence is not None and not (type(confidence) in (int, float) and 0 <= confidence <= 1):
        raise row.error(f"cot_conf {confidence!r} is neither null nor a number in 0 .. 1")
    return RationaleRow(
        query_id=parse_id(row, row.require("qid"), MAX_QUERY_NUMBER),
        task_id=row.require_int("task_id", range(9)),
        difficulty=difficulty,
        reasoning=reasoning or None,
        answer=answer or None,
        confidence=confidence,
        source=source,
        teacher=str(row.require("teacher")),
    )
