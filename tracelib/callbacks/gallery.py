"""Shows queries, thoughts and results in TensorBoard, as pictures and as a table of rationales.

Shapes: Q queries.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from tracelib.callbacks.gallery_sheet import Panel, Record, Result, compose_sheet
from tracelib.callbacks.retrieval_evaluation import get_latest_evaluation
from tracelib.callbacks.stored_evaluation import Evaluation
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.images import load_image
from tracelib.metrics.recall import hit_at_k
from tracelib.retrieval.evaluation import QueryFacts
from tracelib.types import Candidate, Query

_PANELS_PER_SHEET = 4
_TABLE_ROWS = 16
_DIFFICULTY = {0: "easy", 1: "hard"}


def choose_queries(
    facts: QueryFacts, is_failure: Tensor, places: Sequence[int], num_queries: int, seed: int
) -> list[int]:
    """Return a sample of queries spread over columns and difficulties, every other one a failure.

    Where failures or successes run out, the other kind fills the sample.

    Args:
        facts: The queries' columns and difficulty.
        is_failure: `[Q]` whether no positive came first.
        places: Queries to choose from.
        num_queries: Size of the sample; fewer where `places` are fewer.
        seed: The same seed and the same failures give the same sample.
    """
    waiting = list(places)
    random.Random(seed).shuffle(waiting)
    columns: Counter[str] = Counter()
    kinds: Counter[tuple[bool, int]] = Counter()
    chosen: list[int] = []
    difficulty, failed = facts.difficulty.tolist(), is_failure.tolist()
    while waiting and len(chosen) < num_queries:
        wants_failure = len(chosen) % 2 == 0
        best = min(
            waiting,
            key=lambda i: (
                failed[i] != wants_failure,
                columns[facts.columns[i]],
                kinds[failed[i], difficulty[i]],
            ),
        )
        waiting.remove(best)
        columns[facts.columns[best]] += 1
        kinds[failed[best], difficulty[best]] += 1
        chosen.append(best)
    return sorted(chosen)


class Gallery(Callback):
    """Draws sampled queries with their rationales and results, for TensorBoard's Images and Text.

    Needs a `RetrievalEvaluation` before it, and a `TensorBoardLogger`, in whose run the pictures of
    the latest evaluation also lie as gallery/<split>-<number>.png.

    Args:
        num_queries: Queries drawn after each evaluation, four to a sheet; 0 draws none.
        top_k: Results of the local pool beside each query, 1 .. 8.
        seed: Seed of the sample.

    Raises:
        ValueError: `num_queries` or `top_k` is out of its range.
    """

    def __init__(self, num_queries: int = 12, top_k: int = 5, seed: int = 0) -> None:
        if num_queries < 0:
            raise ValueError(f"num_queries is {num_queries}, must be at least 0 (Gallery)")
        if not 1 <= top_k <= 8:
            raise ValueError(f"top_k is {top_k}, allowed 1 .. 8: more do not fit a sheet (Gallery)")
        self.num_queries, self.top_k, self.seed = num_queries, top_k, seed
        self._said_why_not = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the val split."""
        if not trainer.sanity_checking:
            self._show(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the test split."""
        self._show(trainer, "test")

    def _show(self, trainer: Trainer, split: str) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger):
            if not self._said_why_not:
                rank_zero_info("Gallery shows nothing: trainer.logger is no TensorBoardLogger")
            self._said_why_not = True
            return
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MBEIRDataModule)
        evaluation, writer = get_latest_evaluation(trainer), trainer.logger.experiment
        facts, places = evaluation.facts, evaluation.rankings["local"].places
        is_failure = hit_at_k(places, facts.positives, 1) == 0
        folder = Path(trainer.logger.log_dir) / "gallery"
        folder.mkdir(parents=True, exist_ok=True)
        everyone = range(len(facts.columns))
        chosen = choose_queries(facts, is_failure, everyone, self.num_queries, self.seed)
        panels = [build_panel(evaluation, i, self.top_k, data) for i in chosen]
        for number, start in enumerate(range(0, len(panels), _PANELS_PER_SHEET), start=1):
            sheet = compose_sheet(panels[start : start + _PANELS_PER_SHEET])
            sheet.save(folder / f"{split}-{number}.png")
            tag = f"gallery/{split}/{number}"
            writer.add_image(tag, np.asarray(sheet), trainer.global_step, dataformats="HWC")
        # Queries of unknown difficulty count as hard when they thought.
        is_hard = (facts.difficulty == 1) | ((facts.difficulty < 0) & evaluation.thoughts.thinks)
        hard = is_hard.nonzero().flatten().tolist()
        if rows := choose_queries(facts, is_failure, hard, _TABLE_ROWS, self.seed):
            table = build_rationale_table(evaluation, rows, data)
            writer.add_text(f"rationales/{split}", table, trainer.global_step)


def build_panel(evaluation: Evaluation, index: int, top_k: int, data: MBEIRDataModule) -> Panel:
    """Return what there is to draw of one query."""
    found, thoughts = evaluation.evaluation_set, evaluation.thoughts
    query, positives = found.queries[index], evaluation.facts.positives[index]
    ranking = evaluation.rankings["local"]
    ranked = [place for place in ranking.places[index].tolist() if place >= 0]
    hits = [rank for rank, place in enumerate(ranked, start=1) if place in positives]
    probability = thoughts.think_probability[index].item()
    difficulty = _DIFFICULTY.get(int(evaluation.facts.difficulty[index]), "difficulty unknown")

    def load(record: Query | Candidate) -> Record:
        image = load_image(data.root, record.image_path) if record.image_path else None
        return Record(record.text, image)

    return Panel(
        title=f"{query.column} · {difficulty} · {query.query_id}",
        instruction=query.instruction,
        query=load(query),
        decision=describe_decision(evaluation, index),
        think_probability=None if np.isnan(probability) else probability,
        rationale=decode_rationale(evaluation, index, data),
        gold=load(found.candidates[positives[0]]) if positives else None,
        gold_rank=hits[0] if hits else None,
        results=[
            Result(load(found.candidates[place]), score, place in positives)
            for place, score in zip(ranked[:top_k], ranking.scores[index].tolist(), strict=False)
        ],
    )


def describe_decision(evaluation: Evaluation, index: int) -> str:
    """Return what the gate made of a query, and how its thought ended."""
    thoughts = evaluation.thoughts
    if not thoughts.thinks[index]:
        return "bypassed, answered at once"
    written = f"thought in {len(thoughts.rationale_token_ids[index])} tokens"
    return f"{written}, cut off" if thoughts.is_forced[index] else written


def decode_rationale(evaluation: Evaluation, index: int, data: MBEIRDataModule) -> str:
    """Return what a query wrote before its embedding token, `""` for a bypass."""
    token_ids = list(evaluation.thoughts.rationale_token_ids[index])
    return str(data.processor.tokenizer.decode(token_ids))


def build_rationale_table(
    evaluation: Evaluation, indices: Sequence[int], data: MBEIRDataModule
) -> str:
    """Return a Markdown table of prompts, and of rationales as written and as they should be."""
    # TensorBoard breaks the words of narrow columns, so short facts share one.
    rows = [["query", "written", "reference", "outcome"], ["---"] * 4]
    for i in indices:
        query = evaluation.evaluation_set.queries[i]
        written = decode_rationale(evaluation, i, data)
        reference = query.rationale.text if query.rationale else ""
        outcome = [describe_decision(evaluation, i)]
        if evaluation.thoughts.thinks[i]:
            is_forced = evaluation.thoughts.is_forced[i]
            outcome += [f"embedding token {'appended' if is_forced else 'reached'}"]
        if reference:
            outcome += [f"exact: {'yes' if written == reference else 'no'}"]
        if not evaluation.thoughts.think_probability[i].isnan():
            outcome += [f"P(think) {evaluation.thoughts.think_probability[i]:.2f}"]
        prompt = f"{query.instruction} {query.text}".strip()
        cells = (
            f"{query.column} {query.query_id}: {prompt}",
            written if evaluation.thoughts.thinks[i] else "(bypassed, nothing was written)",
            reference,
            ", ".join(outcome),
        )
        rows.append([_escape(cell) for cell in cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escape(text: str) -> str:
    """Keep Markdown from reading a cell as anything but text."""
    entities = {ord(character): f"&#{ord(character)};" for character in "&<|_*`[\\"}
    return " ".join(text.translate(entities).split())
