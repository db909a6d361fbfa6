"""Reads an M-BEIR tree: queries, pools, qrels, instructions and rationales.

References:
    Wei et al., UniIR: Training and Benchmarking Universal Multimodal Information Retrievers (2024).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tracelib.data.instructions import InstructionTable, PromptPolicy
from tracelib.data.jsonl import DataError as DataError
from tracelib.data.jsonl import Row, read_rows
from tracelib.data.layout import Layout
from tracelib.data.rationales import RationaleRow, read_rationales
from tracelib.data.records import TASK_MODALITIES as TASK_MODALITIES
from tracelib.data.records import parse_candidate, parse_qrels_line, parse_query
from tracelib.prompts import format_query
from tracelib.types import Candidate, Query

HEADLINE_K = {"fashion200k_task0": 10, "fashion200k_task3": 10, "fashioniq_task7": 10}


def headline_k(column: str) -> int:
    """Return the k of the Recall@k that a column is reported by.

    >>> headline_k("cirr_task7"), headline_k("fashioniq_task7")
    (5, 10)
    """
    return HEADLINE_K.get(column, 5)


def check_positives(
    queries: Iterable[Query],
    pool: Iterable[Candidate],
    source: str | Path,
    num_hard_negatives: int = 0,
) -> None:
    """Check that the positives of train queries, and the negatives used, are in the train pool.

    Not for val and test: some of their positives lie in the pools of other columns by design.

    Args:
        queries: Train queries.
        pool: Train pool.
        source: Where the pool came from, for the message.
        num_hard_negatives: Hard negatives per query that will be used.

    Raises:
        DataError: One is not.
    """
    known = {candidate.candidate_id for candidate in pool}
    for query in queries:
        for candidate_id in (*query.positive_ids, *query.negative_ids[:num_hard_negatives]):
            if candidate_id not in known:
                role = "positive" if candidate_id in query.positive_ids else "hard negative"
                raise DataError(
                    f"{source}: no candidate {candidate_id!r}, a {role} of query "
                    f"{query.query_id!r} ({query.column}); add it to this pool or drop the query"
                )


class MBEIRReader:
    """Reads the files of an M-BEIR tree strictly, as records with formatted texts.

    Args:
        root: Folder that holds `query`, `cand_pool`, `qrels`, `instructions` and the pictures.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._layout = Layout(root)

    def columns(self, split: str) -> list[str]:
        """Return the columns of a split, those of M-BEIR first in canonical order.

        Raises:
            DataError: There is no query file, or the split is train, whose files mix the tasks.
        """
        if split == "train":
            raise DataError(f"{self.root}: train files mix the tasks; columns are for val and test")
        return self._layout.find_stems(split)

    def read_queries(
        self,
        split: str,
        column: str | None = None,
        prompt_policy: PromptPolicy = "fixed",
        seed: int = 0,
    ) -> list[Query]:
        """Read queries with their instructions, positives and rationales.

        Args:
            split: `train`, `val` or `test`.
            column: Read this column only; None reads all.
            prompt_policy: Which prompt of a query's instruction row is used: `fixed` the first,
                `per_query_hash` one fixed by the query id, `random` one drawn with `seed`.
            seed: Seed of the `random` policy.

        Raises:
            DataError: A file breaks the format; the message names file, line and value.
            ValueError: There is no such prompt policy.
        """
        instructions = InstructionTable(self._layout.instructions, prompt_policy, seed)
        queries: list[Query] = []
        for stem in self._select_stems(split, column):
            dataset, _, file_task = stem.partition("_task")
            qrels = None if split == "train" else self.read_qrels(split, stem)
            rationale_path = self._layout.rationales(dataset, split)
            rationales = read_rationales(rationale_path) if rationale_path.exists() else {}
            seen: set[str] = set()
            for row in read_rows(self._layout.query(stem, split)):
                query = parse_query(row, dataset, int(file_task) if file_task else None)
                if query.query_id in seen:
                    raise row.error(f"qid {query.query_id!r} occurs twice in this file")
                seen.add(query.query_id)
                if column not in (None, query.column):
                    continue
                query = _join_instruction(query, instructions, split)
                if qrels is not None:
                    query = _join_positives(row, query, qrels)
                queries.append(_join_rationale(row, query, rationales))
        return queries

    def read_pool(self, split: str, column: str) -> list[Candidate]:
        """Read a column's local pool, the one of the split where pools differ by split.

        Raises:
            DataError: The file is missing, empty, or breaks the format.
        """
        return _read_candidates(self._layout.find_pool(column, split))

    def read_union_pool(self, split: str) -> list[Candidate]:
        """Read the union pool; for train it is the only pool.

        Raises:
            DataError: The file is missing, empty, or breaks the format.
        """
        return _read_candidates(self._layout.union_pool(split))

    def read_qrels(self, split: str, column: str) -> dict[str, tuple[str, ...]]:
        """Read the positives of each query of a column, those of other columns' pools included.

        Raises:
            DataError: The file is missing or names no positive, or a line breaks the format.
        """
        path = self._layout.qrels(column, split)
        if not path.exists():
            raise DataError(f"{path}: the file is missing")
        positives: defaultdict[str, list[str]] = defaultdict(list)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            query_id, candidate_id, relevant = parse_qrels_line(Row({}, path, number), line)
            if relevant and candidate_id not in positives[query_id]:
                positives[query_id].append(candidate_id)
        if not positives:
            raise DataError(f"{path}: the file names no positive; each query needs one")
        return {query_id: tuple(ids) for query_id, ids in positives.items()}

    def read_rationales(self, split: str) -> dict[str, RationaleRow]:
        """Read the rationale rows of all data sets of a split, by query id; `{}` without any.

        Raises:
            DataError: A file breaks the format.
        """
        rows: dict[str, RationaleRow] = {}
        pattern = self._layout.rationales("*", split)
        for path in sorted(pattern.parent.glob(pattern.name)):
            rows |= read_rationales(path)
        return rows

    def file_hashes(self, split: str) -> dict[str, str]:
        """Return the SHA-256 of each query, pool and qrels file of a split, by relative path.

        Raises:
            DataError: There is no query file of the split.
        """
        paths = {self._layout.union_pool(split)}
        for stem in self._layout.find_stems(split):
            paths |= {self._layout.query(stem, split), self._layout.qrels(stem, split)}
            paths |= set() if split == "train" else {self._layout.find_pool(stem, split)}
        hashes = {}
        for path in sorted(path for path in paths if path.exists()):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            hashes[path.relative_to(self.root).as_posix()] = digest.hexdigest()
        return hashes

    def _select_stems(self, split: str, column: str | None) -> list[str]:
        """Return the stems of the query files to read: columns, or the data sets of train."""
        stems = self._layout.find_stems(split)
        if column is None:
            return stems
        stem = column.rpartition("_task")[0] if split == "train" else column
        if stem not in stems:
            raise DataError(f"{self.root}: no {column!r} in split {split!r}; there are {stems}")
        return [stem]


def _join_instruction(query: Query, instructions: InstructionTable, split: str) -> Query:
    """Set instruction and text so that both, joined by a blank, are M-BEIR's query string."""
    modalities = TASK_MODALITIES[query.task_id]
    instruction = instructions.choose(split, query.query_id, modalities)
    text = format_query(instruction, query.text)[len(instruction) + 1 :]
    return replace(query, instruction=instruction, text=text)


def _join_positives(row: Row, query: Query, qrels: Mapping[str, tuple[str, ...]]) -> Query:
    if not (positive_ids := qrels.get(query.query_id)):
        raise row.error(f"qid {query.query_id!r} has no positive in the qrels of {query.column}")
    negative_ids = tuple(key for key in query.negative_ids if key not in positive_ids)
    return replace(query, positive_ids=positive_ids, negative_ids=negative_ids)


def _join_rationale(row: Row, query: Query, rationales: Mapping[str, RationaleRow]) -> Query:
    if (found := rationales.get(query.query_id)) is None:
        return query
    if found.task_id != query.task_id:
        raise row.error(
            f"task_id {query.task_id}, but {found.task_id} in the rationale of {query.query_id!r}"
        )
    return replace(query, rationale=found.rationale, difficulty=found.difficulty)


def _read_candidates(path: Path) -> list[Candidate]:
    pool: dict[str, Candidate] = {}
    for row in read_rows(path):
        candidate = parse_candidate(row)
        if candidate.candidate_id in pool:
            raise row.error(f"did {candidate.candidate_id!r} occurs twice in this pool")
        pool[candidate.candidate_id] = candidate
    return list(pool.values())
