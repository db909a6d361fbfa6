"""What orders of queries could be worth to a router: areas between random, 0, and the oracle, 1.

python experiments/routing/ceilings.py --run RUN [--root data/scenes]

Nothing is embedded; the run was evaluated (`never` and `always`). Any-hit recall at 5, local pools,
mean over columns, test split of Scenes. The orders, from who thinks first:

- `head`: the router's probability.
- `difficulty`: the annotation, in any order within hard and easy.
- `number_of_edits`: what a query's text says.
- `task_and_edits`: queries of one task and number of edits together, by what they gain on average
  on this very test split: more than anyone can know who knows no more of a query than these two.
- `head_then_luck`: the head's order, but hindsight's among the hard queries.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tracelib.data.mbeir import MBEIRReader
from tracelib.metrics.think_curve import compute_gains, trace_think_curve, weight_columns_equally
from tracelib.retrieval.per_query import read_per_query

_K = 5
_EDIT = re.compile(r"\b[1-4] (?=swap|turn|mirror|flip|paint|make|copy)")


def measure_ceilings(
    run: Path = Path("runs/trace_scenes/version_0"),
    root: Path = Path("data/scenes"),
    output: Path | None = None,
) -> dict[str, float]:
    """Measure, print the areas, and write them as JSON if asked.

    Args:
        run: Folder of an evaluated run.
        root: Tree of Scenes.
        output: File for the areas; None writes none.
    """
    direct, thought = (
        read_per_query(run / "evaluation" / gate / "per_query.parquet")
        for gate in ("never", "always")
    )
    scores = [
        ((queries.first_ranks["local"] > 0) & (queries.first_ranks["local"] <= _K)).double()
        for queries in (direct, thought)
    ]
    columns = {name: code for code, name in enumerate(dict.fromkeys(direct.columns))}
    codes = torch.tensor([columns[name] for name in direct.columns])
    weights = weight_columns_equally(codes)
    edits = count_edits(root, direct.query_ids)
    gains = compute_gains(*scores, weights)
    is_hard, head = direct.difficulty == 1, direct.think_probability.double()
    orders = {
        "head": head,
        "difficulty": direct.difficulty.double(),
        "number_of_edits": edits.double(),
        "task_and_edits": average_by_group(gains / weights, codes * 10 + edits),
        "head_then_luck": torch.where(is_hard, 2 + gains / weights, head),
    }
    areas = {
        name: trace_think_curve(*scores, order, weights).area_fraction
        for name, order in orders.items()
    }
    table = Table("order", "area")
    for name, area in areas.items():
        table.add_row(name, f"{area:.3f}")
    Console().print(table)
    if output is not None:
        output.write_text(json.dumps({"run": str(run), "areas": areas}, indent=1) + "\n")
    return areas


def count_edits(root: Path, query_ids: list[str]) -> Tensor:
    """Return `[Q]` the number of edits that each test query's text has."""
    texts = {query.query_id: query.text for query in MBEIRReader(root).read_queries("test")}
    return torch.tensor([len(_EDIT.findall(texts[query_id].lower())) for query_id in query_ids])


def average_by_group(values: Tensor, groups: Tensor) -> Tensor:
    """Return `[Q]` the mean of each value's group.

    >>> average_by_group(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7, 7, 8])).tolist()
    [2.0, 2.0, 5.0]
    """
    _, places, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), dtype=values.dtype).index_add(0, places, values)
    return (sums / sizes)[places]


if __name__ == "__main__":
    auto_cli(measure_ceilings)
