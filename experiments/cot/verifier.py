"""Measures how well the verifier of a recipe tells right answers from planted wrong ones.

python experiments/cot/verifier.py [--num 2400] [--recipe configs/cot/scenes.yaml]

The answers are to hard queries of Scenes, half of them wrong in ways that the rules do not see. The
recipe's teachers are asked as in a build, but in this process, by the embedded backbone.

- `precision`: of the answers that the verifier keeps, the share that is right.
- `recall`: of the right answers, the share that it keeps.
- `kept` by kind: how many answers of each kind it keeps.
- `curve`: both if an answer of at least so much agreement were kept.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli
from planted_answers import RIGHT, WRONG_KINDS, PlantedAnswer, plant_answers
from rich.console import Console
from rich.table import Table

from tracelib.construction.filtering import load_token_counter
from tracelib.construction.queries import QuerySettings, SourceQueries
from tracelib.construction.rules.rationale_check import Facts, RuleLimits, check_rationale
from tracelib.construction.teachers.dispatch import run_requests
from tracelib.construction.teachers.in_process import EngineTeacher
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError
from tracelib.construction.verifiers.caption import CaptionVerifier
from tracelib.construction.verifiers.verifier import Verdict, Verifier
from tracelib.data.mbeir import MBEIRReader
from tracelib.data.records import TASK_MODALITIES
from tracelib.retrieval.runs import collect_provenance

_REPORT = Path(__file__).with_name("verifier.json")
_THRESHOLDS = tuple(number / 8 for number in range(1, 9))


@dataclass(frozen=True)
class Judged:
    """A planted answer and what the verifier says of it.

    Args:
        planted: The answer.
        verdict: The verdict, or None where the reply was none or could not be read.
        is_kept: Whether a build would keep it.
    """

    planted: PlantedAnswer
    verdict: Verdict | None
    is_kept: bool


def measure_verifier(
    recipe: Path = Path("configs/cot/scenes.yaml"),
    root: Path = Path("data/scenes"),
    split: str = "train",
    num: int = 2400,
    seed: int = 0,
    concurrency: int = 256,
    output: Path = _REPORT,
) -> dict[str, Any]:
    """Measure, print the numbers and write them as JSON.

    Args:
        recipe: Recipe of a build whose verifier is a `CaptionVerifier`.
        root: Tree of Scenes.
        split: Split of the queries.
        num: How many answers, a multiple of 12.
        seed: Seed of the choice of queries and answers.
        concurrency: Requests in flight.
        output: The report.
    """
    settings = yaml.safe_load(recipe.read_text())
    queries = SourceQueries(QuerySettings(root, split))
    rows = {row.query_id: row for row in MBEIRReader(root).read_rationales(split)}
    planted = plant_answers(queries, rows, num, seed)
    chosen = settings["verify"]["verifier"]["init_args"]
    options = {name: value for name, value in chosen.items() if name != "teacher"}
    teacher = EngineTeacher("embedded", root)
    verifier = CaptionVerifier(teacher, Path(options.pop("templates")), **options)
    min_confidence = settings["verify"].get("min_confidence", 0.7)
    judged = asyncio.run(judge_answers(planted, verifier, min_confidence, concurrency))
    report = summarize(judged)
    report["num_passing_rules"] = count_passing(planted, settings)
    sampling = {"num": num, "seed": seed, "split": split, "min_confidence": min_confidence}
    report["provenance"] = collect_provenance(
        {"recipe": settings["verify"], **sampling},
        MBEIRReader(root).file_hashes(split),
        "fixed",
        "float32",
    )
    output.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    return report


async def judge_answers(
    planted: Sequence[PlantedAnswer], verifier: Verifier, min_confidence: float, concurrency: int
) -> list[Judged]:
    """Ask the verifier about every answer, each once."""
    by_key = {f"{number}": answer for number, answer in enumerate(planted)}
    judged: dict[str, Judged] = {}

    def take(request: Request, outcome: Reply | TeacherError) -> None:
        answer, verdict = by_key[request.key], None
        if isinstance(outcome, Reply):
            try:
                verdict = verifier.read_reply(outcome, answer.query, answer.answer)
            except ValueError:
                verdict = None  # a build would ask again, to the same end: it is asked greedily
        elif outcome.kind not in ("empty", "truncated"):
            raise outcome  # a verifier that cannot be asked has no precision
        is_kept = bool(verdict and verdict.is_consistent and verdict.confidence >= min_confidence)
        judged[request.key] = Judged(answer, verdict, is_kept)

    requests = (
        verifier.build_request(key, answer.query, answer.reasoning, answer.answer)
        for key, answer in by_key.items()
    )
    async with verifier.teacher as teacher:
        await run_requests(requests, teacher, take, concurrency)
    return [judged[key] for key in by_key]


def summarize(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return precision and recall, of all and by modality of the target, and what was kept."""
    totals = Counter(answer.planted.kind for answer in judged)
    kept = Counter(answer.planted.kind for answer in judged if answer.is_kept)
    modalities = sorted({_name_target(answer) for answer in judged})
    curve = [
        {
            "agreement": threshold,
            **_rate(judged, [_get_confidence(answer) >= threshold for answer in judged]),
        }
        for threshold in _THRESHOLDS
    ]
    return {
        "num_answers": len(judged),
        "num_right": totals[RIGHT],
        "num_without_verdict": sum(answer.verdict is None for answer in judged),
        **_rate(judged, [answer.is_kept for answer in judged]),
        "kept": {kind: [kept[kind], totals[kind]] for kind in (RIGHT, *WRONG_KINDS)},
        "by_target": {name: _rate_target(judged, name) for name in modalities},
        "curve": curve,
    }


def count_passing(planted: Sequence[PlantedAnswer], settings: dict[str, Any]) -> dict[str, int]:
    """Return how many answers of each kind the rules of a recipe would let through."""
    limits = RuleLimits(**settings["rules"])
    count_tokens = load_token_counter(settings["filter"]["tokenizer"])
    passing: Counter[str] = Counter({kind: 0 for kind in (RIGHT, *WRONG_KINDS)})
    for answer in planted:
        query = answer.query
        facts = Facts(
            query.text,
            query.instruction,
            query.source_caption,
            query.target_text or None,
            query.target_id,
            "teacher",
            query.task_id,
        )
        violations = check_rationale(answer.text, facts, limits, count_tokens)
        passing[answer.kind] += not violations
    return dict(passing)


def show(report: dict[str, Any]) -> None:
    """Print a report."""
    table = Table("kind", "kept", "of", "pass the rules", title="planted answers")
    for kind, (num_kept, num_all) in report["kept"].items():
        table.add_row(kind, f"{num_kept}", f"{num_all}", f"{report['num_passing_rules'][kind]}")
    console = Console()
    console.print(table)
    console.print(f"precision {report['precision']:.4f}, recall {report['recall']:.4f}")


def _rate(judged: Sequence[Judged], is_kept: Sequence[bool]) -> dict[str, float]:
    """Return precision, 1 if nothing is kept, and recall."""
    pairs = list(zip(judged, is_kept, strict=True))
    num_kept = sum(is_kept)
    num_right_kept = sum(kept and answer.planted.is_right for answer, kept in pairs)
    num_right = sum(answer.planted.is_right for answer in judged)
    precision = num_right_kept / num_kept if num_kept else 1.0
    return {"precision": precision, "recall": num_right_kept / max(1, num_right)}


def _rate_target(judged: Sequence[Judged], name: str) -> dict[str, float]:
    part = [answer for answer in judged if _name_target(answer) == name]
    return {"num_answers": len(part), **_rate(part, [answer.is_kept for answer in part])}


def _name_target(answer: Judged) -> str:
    return TASK_MODALITIES[answer.planted.query.task_id][1]


def _get_confidence(answer: Judged) -> float:
    return answer.verdict.confidence if answer.verdict else 0.0


if __name__ == "__main__":
    auto_cli(measure_verifier, as_positional=False)
