"""Which sequences of a batch are encoded together: chunks of similar length, within limits.

A chunk takes (rows x its longest) tokens of memory and time, padding included. The loss does not
depend on the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def form_chunks(
    lengths: Sequence[int],
    names: Sequence[str],
    micro_batch_size: int | None = None,
    micro_batch_tokens: int | None = None,
) -> list[list[int]]:
    """Return the places of the rows of each chunk, shortest rows first.

    With a limit there are as few chunks as it allows, without one at most two, and with as many
    chunks the padded tokens are the fewest.

    Args:
        lengths: Tokens of each row, those of pictures included.
        names: What each row is, for the error; rows of one length are in the order of their names.
        micro_batch_size: Most rows of a chunk.
        micro_batch_tokens: Most tokens of a chunk, padding included.

    Raises:
        ValueError: One row alone is longer than a chunk may be.

    >>> form_chunks([9, 2, 8, 3], ["a", "b", "c", "d"])
    [[1, 3], [2, 0]]
    >>> form_chunks([9, 2, 8, 3], ["a", "b", "c", "d"], micro_batch_tokens=9)
    [[1, 3], [2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], names[place]))
    ordered = np.array([lengths[place] for place in order])
    if micro_batch_size is None and micro_batch_tokens is None:
        edges = _cut_in_two(ordered)
    else:
        most_tokens = micro_batch_tokens or len(ordered) * int(ordered[-1])
        if ordered[-1] > most_tokens:
            raise ValueError(
                f"{names[order[-1]]} has {ordered[-1]} tokens, its pictures' included, and a "
                f"chunk at most {most_tokens}: raise data.micro_batch_tokens, or lower "
                "data.max_text_tokens or data.max_image_tokens"
            )
        edges = _cut_within(ordered, micro_batch_size or len(ordered), most_tokens)
    return [order[start:end] for start, end in zip([0, *edges], edges, strict=False)]


def _cut_in_two(ordered: Ints) -> list[int]:
    """Return where each of at most two chunks ends."""
    ends = np.arange(1, len(ordered) + 1)
    # Of equal sums the last is taken: one chunk, where two save nothing.
    padded = (ends * ordered + (len(ordered) - ends) * ordered[-1])[::-1]
    end = len(ordered) - int(padded.argmin())
    return sorted({end, len(ordered)})


def _cut_within(ordered: Ints, most_rows: int, most_tokens: int) -> list[int]:
    """Return where each chunk ends, for the fewest chunks and then the fewest padded tokens."""
    num_rows = len(ordered)
    # A chunk more costs more than any padding, so one number orders both wishes.
    chunk_cost = num_rows * int(ordered[-1]) + 1
    costs = np.zeros(num_rows + 1, np.int64)
    starts = np.zeros(num_rows + 1, np.int64)
    for end in range(1, num_rows + 1):
        longest = int(ordered[end - 1])
        first = max(0, end - min(most_rows, most_tokens // longest))
        sums = costs[first:end] + longest * np.arange(end - first, 0, -1)
        starts[end] = first + sums.argmin()
        costs[end] = sums.min() + chunk_cost
    edges = [num_rows]
    while starts[edges[-1]]:
        edges.append(int(starts[edges[-1]]))
    return edges[::-1]
