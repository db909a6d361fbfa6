"""Which texts training may use, and for what.

Shapes: Q training queries.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tracelib.data.rationales import SOURCES
from tracelib.data.records import MAX_QUERY_NUMBER, decode_id
from tracelib.types import ContrastiveRationale

RationalePolicy = Literal["none", "teacher", "oracle"]
_ADVICE = (
    "set data.contrastive_rationale to 'self', to read embeddings after the model's own thoughts, "
    "or to 'oracle', to read them after such texts all the same"
)


def check_rationale_policy(
    query_ids: NDArray[np.int64],
    sources: NDArray[np.int8],
    rationale: RationalePolicy,
    contrastive_rationale: ContrastiveRationale,
) -> None:
    """Raise where embeddings would be read after a text that is not there or saw its target.

    At test time there is no such text: that leak is RGE's central finding.

    Args:
        query_ids: `[Q]` integer ids.
        sources: `[Q]` place of each rationale's writer in `SOURCES`, -1 without a rationale.
        rationale: Text of the language-modelling loss.
        contrastive_rationale: Text that embeddings are read after.

    Raises:
        ValueError: They would, or there is no rationale at all.
    """
    if rationale == "none":
        if contrastive_rationale != "annotated":
            raise ValueError(
                f"data.contrastive_rationale is {contrastive_rationale!r}, but data.rationale "
                "'none' gives no text to learn to think by: set it to 'annotated', or "
                "data.rationale to 'teacher' or 'oracle'"
            )
        return
    if (sources < 0).all():
        raise ValueError(f"data.rationale is {rationale!r} but no training query has a rationale")
    if contrastive_rationale != "annotated":
        return
    if rationale == "oracle":
        raise ValueError(
            "data.rationale is 'oracle', but texts that have seen their target must not be what "
            f"embeddings are read after: {_ADVICE}"
        )
    leaks = np.flatnonzero(sources == SOURCES.index("oracle"))
    if len(leaks):
        first = decode_id(int(query_ids[leaks[0]]), MAX_QUERY_NUMBER)
        raise ValueError(
            f"{len(leaks)} rationales have seen their target, first that of query {first}: "
            f"{_ADVICE}"
        )
