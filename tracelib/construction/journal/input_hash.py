"""What a result depends on, as a short digest: when it differs, the result is stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from tracelib.construction.journal.journal_row import JournalRow


def compute_input_hash(settings: Any, prompt: Any, upstream: Sequence[JournalRow] = ()) -> str:
    """Return 16 hexadecimal digits that stand for the input of a result.

    They are the same in every process and for every order of a mapping's keys. Of an upstream row
    its place, status and result count, not its own hash: what was recomputed to the same result
    makes nothing below it stale.

    Args:
        settings: JSON values: teacher, sampling, limits, versions; for many queries of the same
            settings, a digest of them.
        prompt: JSON values: the messages, with paths in place of pictures.
        upstream: Rows of earlier phases that the result is made from, in their order.

    Raises:
        ValueError: Something is not made of JSON values.

    >>> compute_input_hash({"a": 1, "b": 2}, "why") == compute_input_hash({"b": 2, "a": 1}, "why")
    True
    >>> compute_input_hash({"a": 1}, "why") == compute_input_hash({"a": 1}, "why?")
    False
    """
    rows = [[row.query_id, row.phase, row.sample, row.status, row.result] for row in upstream]
    try:
        text = json.dumps(
            [settings, prompt, rows], sort_keys=True, allow_nan=False, separators=(",", ":")
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the input of a result must be made of JSON values: {error}; it is "
            f"{[settings, prompt]!r:.200}"
        ) from error
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
