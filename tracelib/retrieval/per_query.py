"""One row per query of what an evaluation found, so that two runs can be compared in pairs.

Shapes: Q queries.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tracelib.retrieval.evaluation import QueryFacts, Ranking, Thoughts, rank_first_positives

_SCHEMA = pa.schema(
    {
        "query_id": pa.string(),
        "column": pa.string(),
        "prompt_number": pa.int8(),
        "difficulty": pa.int8(),
        "num_positives": pa.int32(),
        "rank_local": pa.int32(),
        "rank_union": pa.int32(),
        "thinks": pa.bool_(),
        "num_tokens": pa.int32(),
        "think_probability": pa.float32(),
        "emb_is_first": pa.bool_(),
    }
)


@dataclass(frozen=True, eq=False)
class PerQuery:
    """What an evaluation found, in the order of its queries.

    Args:
        query_ids: Query ids, unique within a column and prompt.
        columns: Column of each query.
        prompt_numbers: `[Q]` the query's prompt, from 1, where all prompts were asked; else 0.
        difficulty: `[Q]` 1 hard, 0 easy, -1 unknown.
        num_positives: `[Q]` positives, those in no pool included.
        first_ranks: By pool (`local`, `union`), `[Q]` the rank of the first positive, from 1; 0
            when it is not among the candidates kept.
        thinks: `[Q]` whether the gate had the query think.
        num_tokens: `[Q]` tokens written, the embedding token included.
        think_probability: `[Q]` the router's probability, not calibrated; NaN without a router.
        emb_is_first: `[Q]` whether the embedding token was the likeliest first token.
    """

    query_ids: Sequence[str]
    columns: Sequence[str]
    prompt_numbers: Tensor
    difficulty: Tensor
    num_positives: Tensor
    first_ranks: Mapping[str, Tensor]
    thinks: Tensor
    num_tokens: Tensor
    think_probability: Tensor
    emb_is_first: Tensor


def collect_per_query(
    query_ids: Sequence[str],
    facts: QueryFacts,
    thoughts: Thoughts,
    rankings: Mapping[str, Ranking],
) -> PerQuery:
    """Return what the rows of a gate are the means of; arguments in one order of queries."""
    return PerQuery(
        query_ids,
        facts.columns,
        facts.prompt_numbers,
        facts.difficulty,
        facts.num_positives,
        {pool: rank_first_positives(facts, ranking) for pool, ranking in rankings.items()},
        thoughts.thinks,
        thoughts.num_tokens,
        thoughts.think_probability,
        thoughts.emb_is_first,
    )


def write_per_query(path: Path, queries: PerQuery) -> None:
    """Write one row per query as Parquet, whole or not at all.

    Raises:
        ValueError: The lengths differ.
    """
    values: dict[str, Sized] = {
        "query_id": list(queries.query_ids),
        "column": list(queries.columns),
        "prompt_number": queries.prompt_numbers.numpy(),
        "difficulty": queries.difficulty.numpy(),
        "num_positives": queries.num_positives.numpy(),
        "rank_local": queries.first_ranks["local"].cpu().numpy(),
        "rank_union": queries.first_ranks["union"].cpu().numpy(),
        "thinks": queries.thinks.cpu().numpy(),
        "num_tokens": queries.num_tokens.cpu().int().numpy(),
        "think_probability": queries.think_probability.cpu().float().numpy(),
        "emb_is_first": queries.emb_is_first.cpu().numpy(),
    }
    lengths = {name: len(column) for name, column in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path.name}: columns of different lengths: {lengths}")
    arrays = [pa.array(values[field.name], field.type) for field in _SCHEMA]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_per_query(path: Path) -> PerQuery:
    """Return the rows that `write_per_query` wrote.

    Raises:
        ValueError: The file is missing or holds something else.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is no Parquet file that can be read: {error}") from error
    if table.schema.names != _SCHEMA.names or table.schema.types != _SCHEMA.types:
        raise ValueError(
            f"{path} has columns {table.schema.names}; expected {_SCHEMA.names}; evaluate again"
        )
    whole = {
        name: torch.from_numpy(table[name].to_numpy().copy())
        for name, kind in zip(_SCHEMA.names, _SCHEMA.types, strict=True)
        if kind != pa.string()
    }
    return PerQuery(
        table["query_id"].to_pylist(),
        table["column"].to_pylist(),
        whole["prompt_number"],
        whole["difficulty"],
        whole["num_positives"],
        {"local": whole["rank_local"], "union": whole["rank_union"]},
        whole["thinks"],
        whole["num_tokens"],
        whole["think_probability"],
        whole["emb_is_first"],
    )
