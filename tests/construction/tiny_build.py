"""A build that a test can run whole: its recipe, its teacher in a process, and what comes of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.construction.teachers import rationale_server
from tracelib.cli import main
from tracelib.construction.journal.journal_row import PHASES
from tracelib.construction.journal.work_folder import Journal

TEMPLATES = {
    "assess": {"system": "ASSESS", "user": "{instruction} {query}"},
    "generate": {"system": "GENERATE", "user": "{query_image}{instruction} {query}"},
    "verify": {
        "system": "VERIFY",
        "user": "{target_image}{target} {instruction} {query}\n{reasoning}\n{answer}",
        "source": "oracle",
    },
}
NUM_QUERIES = 32


@contextmanager
def serve(
    fault_rate: float = 0.0,
    latency_seconds: float = 0.0,
    faults: dict[str, int] | None = None,
) -> Iterator[str]:
    """Serve the teacher from a process of its own; give its address.

    `faults` is told at the end how often each came.
    """
    command = [sys.executable, rationale_server.__file__, str(fault_rate), str(latency_seconds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        server.stdin.close()
        counts = json.loads(server.stdout.readline())
    if faults is not None:
        faults.update(counts)


def write_build(folder: Path, root: Path, url: str, **teacher: Any) -> list[str]:
    """Write a recipe with its templates; return the arguments that name it."""
    for phase, template in TEMPLATES.items():
        (folder / "templates" / phase).mkdir(parents=True, exist_ok=True)
        (folder / "templates" / phase / "all.yaml").write_text(yaml.safe_dump(template))
    places = {phase: str(folder / "templates" / phase) for phase in TEMPLATES}
    asked = {
        "class_path": "tracelib.construction.teachers.endpoint.EndpointTeacher",
        "init_args": {
            "base_url": url,
            "model": "stub",
            "picture_root": str(root),
            "timeout_seconds": 0.5,
            "retry": {"max_attempts": 8, "base_seconds": 0.0},
            "price": {"per_million_prompt_tokens": 1.0, "per_million_completion_tokens": 4.0},
            **teacher,
        },
    }
    assessors = {
        "teacher": {
            "class_path": "tracelib.construction.assess.TeacherAssessor",
            "init_args": {"teacher": asked, "templates": places["assess"], "concurrency": 8},
        },
        "rule": {
            "class_path": "tracelib.construction.assess.RuleAssessor",
            "init_args": {"hard_query_pattern": ", 2 "},
        },
    }
    judge = "tracelib.construction.verifiers.judge.JudgeVerifier"
    recipe = {
        "data": {"root": str(root), "max_queries": NUM_QUERIES},
        "work": str(folder / "work"),
        "assess": {"use": "teacher", "assessors": assessors},
        "generate": {
            "teacher": asked,
            "templates": places["generate"],
            "num_samples": 2,
            "concurrency": 8,
        },
        "rules": {"min_shared_words": 0, "min_english_words": 0.0},
        "verify": {
            "verifier": {
                "class_path": judge,
                "init_args": {"teacher": asked, "templates": places["verify"]},
            },
            "concurrency": 8,
        },
        "output": {"folder": folder.name},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return [f"--config={folder / 'recipe.yaml'}"]


def read_output(root: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every Parquet file of a build, in their order."""
    return {
        path.name: pq.read_table(path).to_pylist()
        for path in sorted((root / folder.name).glob("*.parquet"))
    }


def count_rows(folder: Path) -> dict[str, int]:
    """Return the rows ever written of each phase."""
    paths = [folder / "work" / f"{phase}.jsonl" for phase in PHASES]
    return {p.stem: p.read_bytes().count(b"\n") if p.exists() else 0 for p in paths}


def check_journals(folder: Path) -> dict[str, Counter[str]]:
    """Check that no row is doubled or blank; return the newest rows of each phase by status."""
    counts = {}
    with Journal(folder / "work") as work:
        for phase in PHASES:
            rows = list(work.open_phase(phase).read_newest())
            assert len({(row.query_id, row.sample) for row in rows}) == len(rows)
            assert all(row.result for row in rows if row.status in ("done", "dropped"))
            if phase == "generate":
                assert all(row.result["text"].strip() for row in rows if row.status == "done")
            counts[phase] = Counter(row.status for row in rows)
    return counts


def start(words: Sequence[str], errors: Path) -> Any:
    """Start a command line in a process of its own, forked: to import all again takes seconds."""

    def run() -> None:
        for number, path in ((1, os.devnull), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        main(list(words))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def read_report(folder: Path) -> dict[str, Any]:
    """Return the numbers of a build's report."""
    report: dict[str, Any] = json.loads((folder / "work" / "report.json").read_text())
    return report
