"""Reads an M-BEIR tree: queries, pools, qrels, instructions and rationales.

References:
    Wei et al., UniIR: Training and Benchmarking Universal Multimodal Information Retrievers (2024).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tracelib.data.arrow import ArrowTable
from tracelib.data.conversion import TableFormat
from tracelib.data.evaluation_set import EvaluationSet, check_disjoint
from tracelib.data.formats import CANDIDATES, QRELS, RATIONALES, build_query_format
from tracelib.data.instructions import InstructionTable, PromptPolicy, VerbatimTexts
from tracelib.data.jsonl import DataError as DataError
from tracelib.data.layout import RATIONALE_FOLDER, Layout, name_root
from tracelib.data.qrels_table import QrelsTable
from tracelib.data.query_file import QueryFile, check_joins, check_rationales
from tracelib.data.query_table import QueryTable
from tracelib.data.records import MAX_CANDIDATE_NUMBER, decode_id
from tracelib.data.records import TASK_MODALITIES as TASK_MODALITIES
from tracelib.data.table_cache import hash_source, open_table
from tracelib.data.tables import CandidateTable, RationaleTable, VerbatimCandidateTable

CACHE_FOLDER = Path(".tracelib", "arrow")
"""Where tables are kept in a data root."""
TextForm = Literal["formatted", "verbatim"]


class MBEIRReader:
    """Reads the files of an M-BEIR tree strictly, as tables of records with formatted texts.

    Each file is converted to a memory-mapped table when it is read first, and again only when its
    content changes.

    Args:
        root: Folder that holds `query`, `cand_pool`, `qrels`, `instructions` and the pictures.
        cache_dir: Folder to keep the tables in; None keeps them in `.tracelib` of the root.
        rationale_folder: Folder below the root whose rows are the rationales. Queries that it gives
            no difficulty have that of `rationales`.
        texts: `formatted` by M-BEIR's rules, queries after an instruction of their row; `verbatim`
            as the files have them.

    Raises:
        DataError: Another rationale folder than `rationales` is asked for and not in the root.
    """

    def __init__(
        self,
        root: Path,
        cache_dir: Path | None = None,
        rationale_folder: str = RATIONALE_FOLDER,
        texts: TextForm = "formatted",
    ) -> None:
        self.root = root
        self._texts = texts
        self._layout = Layout(root, rationale_folder)
        self._layout.check_rationale_folder()
        self._cache = root / CACHE_FOLDER
        if cache_dir is not None:
            self._cache = Path(cache_dir) / name_root(root)

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
    ) -> QueryTable:
        """Read queries with their instructions, positives and rationales.

        Args:
            split: `train`, `val` or `test`.
            column: Read this column only; None reads all.
            prompt_policy: Which prompt of a query's instruction row is used: `fixed` the first,
                `per_query_hash` one fixed by the query id, `random` one drawn with `seed`, `all`
                each: the query then comes once with every prompt.
            seed: Seed of the `random` policy.

        Raises:
            DataError: A file breaks the format; the message names file, line and value.
            ValueError: There is no such prompt policy.
        """
        instructions = self._read_instructions(prompt_policy, seed)
        stems = self._layout.find_stems(split)
        if column is not None:
            stem = column.rpartition("_task")[0] if split == "train" else column
            if stem not in stems:
                raise DataError(f"{self.root}: no {column!r} in split {split!r}; there are {stems}")
            task_id = int(column.rpartition("_task")[2]) if split == "train" else None
            files = [self._open_query_file(split, stem, task_id)]
        else:
            files = [self._open_query_file(split, stem) for stem in stems]
            datasets = dict.fromkeys(file.dataset for file in files)
            for dataset in datasets:
                check_rationales([file for file in files if file.dataset == dataset])
        return QueryTable(split, files, instructions)

    def read_union_up_queries(
        self, prompt_policy: PromptPolicy = "fixed", seed: int = 0
    ) -> QueryTable:
        """Read the train queries of all data sets from the file that repeats those of small ones.

        Args:
            prompt_policy: As for `read_queries`; a query that is repeated keeps its prompt.
            seed: Seed of the `random` policy.

        Raises:
            DataError: A file breaks the format, or a query is of no data set of M-BEIR.
            ValueError: There is no such prompt policy.
        """
        instructions = self._read_instructions(prompt_policy, seed)
        table_format = build_query_format(None, repeats_ids=True)
        table = self._open(self._layout.union_up_queries, table_format)
        labels = self._read_labels("train")
        file = QueryFile(table, None, None, self.read_rationales("train"), labels=labels)
        check_joins(file)
        check_rationales([file])
        return QueryTable("train", [file], instructions)

    def read_evaluation_set(
        self, split: str, prompt_policy: PromptPolicy = "fixed", seed: int = 0
    ) -> EvaluationSet:
        """Read the queries and the pools of all columns of a split.

        Args:
            split: `val` or `test`.
            prompt_policy: As for `read_queries`.
            seed: Seed of the `random` policy.

        Raises:
            DataError: A file breaks the format, or a candidate is in two pools.
            ValueError: There is no such prompt policy.
        """
        columns = self.columns(split)
        queries = self.read_queries(split, None, prompt_policy, seed)
        pools = [self._open(self._layout.find_pool(name, split), CANDIDATES) for name in columns]
        check_disjoint(pools)
        candidates = self._build_candidates(pools)
        return EvaluationSet(
            queries,
            candidates,
            dict(zip(columns, queries.spans, strict=True)),
            dict(zip(columns, candidates.spans, strict=True)),
        )

    def read_pool(self, split: str, column: str) -> CandidateTable:
        """Read a column's local pool, the one of the split where pools differ by split.

        Raises:
            DataError: The file is missing, empty, or breaks the format.
        """
        return self._build_candidates(
            [self._open(self._layout.find_pool(column, split), CANDIDATES)]
        )

    def read_union_pool(self, split: str) -> CandidateTable:
        """Read the union pool; for train it is the only pool.

        Raises:
            DataError: The file is missing, empty, or breaks the format.
        """
        return self._build_candidates([self._open(self._layout.union_pool(split), CANDIDATES)])

    def read_qrels(self, split: str, column: str) -> QrelsTable:
        """Read the positives of each query of a column, those of other columns' pools included.

        Raises:
            DataError: The file is missing or names no positive, or a line breaks the format.
        """
        return QrelsTable(self._open(self._layout.qrels(column, split), QRELS))

    def read_rationales(self, split: str) -> RationaleTable:
        """Read the rationale rows of all data sets of a split; none where there is no file.

        Raises:
            DataError: A file breaks the format.
        """
        return self._read_rationale_files(self._layout, split)

    def read_sources(self, split: str) -> dict[str, tuple[str, str, str]]:
        """Return the SHA-256 of each column's query file, of the prompts, and of its local pool.

        The train split counts as one column `train`: all its files, the prompts, its union pool.

        Raises:
            DataError: A file is missing.
        """
        if split == "train":
            files = self.file_hashes(split)
            digest = hashlib.sha256(repr(files).encode()).hexdigest()
            instructions, union_pool = (
                files[path.relative_to(self.root).as_posix()]
                for path in (self._layout.instructions, self._layout.union_pool(split))
            )
            return {split: (digest, instructions, union_pool)}
        sources = {}
        for column in self.columns(split):
            query, pool = self._layout.query(column, split), self._layout.find_pool(column, split)
            query_hash, prompt_hash, pool_hash = (
                hash_source(path, self._find_cache(path))
                for path in (query, self._layout.instructions, pool)
            )
            if self._texts == "verbatim":  # other texts, so other embeddings
                query_hash, pool_hash = f"{query_hash} verbatim", f"{pool_hash} verbatim"
            sources[column] = (query_hash, prompt_hash, pool_hash)
        return sources

    def file_hashes(self, split: str) -> dict[str, str]:
        """Return the SHA-256 of prompts and of each query, pool and qrels file, by relative path.

        That of the up-sampled train queries too, where it is.

        Raises:
            DataError: There is no query file of the split.
        """
        paths = {self._layout.instructions, self._layout.union_pool(split)}
        for stem in self._layout.find_stems(split):
            paths |= {self._layout.query(stem, split), self._layout.qrels(stem, split)}
            paths |= set() if split == "train" else {self._layout.find_pool(stem, split)}
        paths |= {self._layout.union_up_queries} if split == "train" else set()
        return {
            path.relative_to(self.root).as_posix(): hash_source(path, self._find_cache(path))
            for path in sorted(path for path in paths if path.exists())
        }

    def _open_query_file(self, split: str, stem: str, task_id: int | None = None) -> QueryFile:
        """Open a query file with what belongs to it, and check that these fit together."""
        dataset, _, file_task = stem.partition("_task")
        file = QueryFile(
            self._open(
                self._layout.query(stem, split),
                build_query_format(int(file_task) if file_task else None),
            ),
            dataset,
            None if split == "train" else self.read_qrels(split, stem),
            self._read_rationale_files(self._layout, split, dataset),
            task_id,
            labels=self._read_labels(split, dataset),
        )
        check_joins(file)
        return file

    def _read_rationale_files(
        self, layout: Layout, split: str, dataset: str = "*"
    ) -> RationaleTable:
        paths = layout.find_rationales(split, dataset)
        return RationaleTable([self._open(path, RATIONALES) for path in paths])

    def _read_labels(self, split: str, dataset: str = "*") -> RationaleTable | None:
        """Read the rows of the usual folder, or return None where they are the rationales."""
        usual = Layout(self.root)
        return None if usual == self._layout else self._read_rationale_files(usual, split, dataset)

    def _read_instructions(
        self, prompt_policy: PromptPolicy, seed: int
    ) -> InstructionTable | VerbatimTexts:
        if self._texts == "verbatim":
            return VerbatimTexts()
        return InstructionTable(self._layout.instructions, prompt_policy, seed)

    def _build_candidates(self, tables: Sequence[ArrowTable]) -> CandidateTable:
        verbatim = self._texts == "verbatim"
        return VerbatimCandidateTable(tables) if verbatim else CandidateTable(tables)

    def _open(self, source: Path, table_format: TableFormat) -> ArrowTable:
        return open_table(source, self._find_cache(source), table_format)

    def _find_cache(self, source: Path) -> Path:
        """Return the folder that a source file's table is kept in."""
        return self._cache / source.relative_to(self.root)


def check_positives(
    queries: QueryTable,
    pool: CandidateTable,
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
    offsets, ids = queries.listed_negatives
    is_used = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets)) < num_hard_negatives
    for role, starts, needed, is_needed in (
        ("positive", *queries.positives, np.True_),
        ("hard negative", offsets, ids, is_used),
    ):
        for spot in np.flatnonzero((pool.find(needed) < 0) & is_needed)[:1].tolist():
            query = queries[int(np.searchsorted(starts, spot, side="right")) - 1]
            name = decode_id(int(needed[spot]), MAX_CANDIDATE_NUMBER)
            raise DataError(
                f"{source}: no candidate {name!r}, a {role} of query {query.query_id!r} "
                f"({query.column}); add it to this pool or drop the query"
            )
