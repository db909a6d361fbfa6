"""M-BEIR-CoT: one rationale row per query, as JSON Lines beside an M-BEIR tree.

The file `rationales/mbeir_<dataset>_<split>_rationales.jsonl` holds rows such as (one line each)

    {"qid": "10:1", "task_id": 7, "difficulty": 1, "reasoning": "0 red star blue moon / ...",
     "answer": "2 blue moon ...", "cot_conf": 0.93, "source": "teacher",
     "teacher": "Qwen2.5-VL-72B-Instruct"}

`difficulty` is 1 when the query needs thought and 0 when not; a row of difficulty 1 has both texts,
another one both or none. `source` is `teacher` for a writer that saw the query only and `oracle`
for one that saw the target too; `teacher` names the writer. `cot_conf` is the writer's confidence,
0 .. 1, or null.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tracelib.data.jsonl import Row, strip_control_tokens, write_rows
from tracelib.data.records import MAX_QUERY_NUMBER, parse_id
from tracelib.types import Rationale


@dataclass(frozen=True)
class RationaleRow:
    """A row of M-BEIR-CoT.

    Args:
        query_id: `D:N` of the query, unique within a split only.
        task_id: M-BEIR task of the query.
        difficulty: 1 when the query needs thought, 0 when not.
        reasoning: The thought, or None.
        answer: Its last line, the description of what is sought, or None.
        confidence: The writer's confidence, 0 .. 1, or None.
        source: `teacher` saw the query only, `oracle` saw the target too.
        teacher: Name of the writer.
    """

    query_id: str
    task_id: int
    difficulty: int
    reasoning: str | None
    answer: str | None
    confidence: float | None
    source: Literal["teacher", "oracle"]
    teacher: str

    @property
    def rationale(self) -> Rationale | None:
        """The thought, or None where there is none."""
        if self.reasoning is None or self.answer is None:
            return None
        return Rationale(self.reasoning, self.answer, self.source)


def write_rationales(path: Path, rows: Iterable[RationaleRow]) -> None:
    """Write rationale rows to a file, in full or not at all."""
    write_rows(
        path,
        (
            {
                "qid": row.query_id,
                "task_id": row.task_id,
                "difficulty": row.difficulty,
                "reasoning": row.reasoning,
                "answer": row.answer,
                "cot_conf": row.confidence,
                "source": row.source,
                "teacher": row.teacher,
            }
            for row in rows
        ),
    )


def parse_rationale(row: Row) -> RationaleRow:
    """Parse a rationale row.

    Raises:
        DataError: It breaks the format given at the top of this module.
    """
    difficulty = row.require_int("difficulty", range(2))
    reasoning, answer = (
        strip_control_tokens(row.get_text(name)).strip() for name in ("reasoning", "answer")
    )
    if bool(reasoning) != bool(answer) or (difficulty and not answer):
        raise row.error(
            f"difficulty {difficulty}, reasoning {reasoning[:40]!r}, answer {answer[:40]!r}: "
            "difficulty 1 needs both texts, difficulty 0 both or none"
        )
    source = row.require("source")
    if source not in ("teacher", "oracle"):
        raise row.error(f"source {source!r} is none of ['teacher', 'oracle']")
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
