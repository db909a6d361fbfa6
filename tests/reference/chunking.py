"""The best way to put sequences into chunks, found by trying all ways."""

from __future__ import annotations

from collections.abc import Iterator


def find_best_cost(lengths, most_chunks=None, most_rows=None, most_tokens=None):
    """Return the fewest chunks and the padded tokens of the best split, of all that are allowed.

    With `most_chunks` the number of chunks is free up to it, and padded tokens come first.
    """
    costs = []
    for chunks in list_partitions(list(lengths)):
        padded = [len(chunk) * max(chunk) for chunk in chunks]
        if most_chunks is not None:
            if len(chunks) <= most_chunks:
                costs.append((sum(padded), len(chunks)))
            continue
        fits = not most_rows or max(map(len, chunks)) <= most_rows
        if fits and (not most_tokens or max(padded) <= most_tokens):
            costs.append((len(chunks), sum(padded)))
    return min(costs)


def list_partitions(rows: list[int]) -> Iterator[list[list[int]]]:
    """Yield each way to put rows into chunks."""
    if not rows:
        yield []
        return
    for rest in list_partitions(rows[1:]):
        for i, chunk in enumerate(rest):
            yield [*rest[:i], [rows[0], *chunk], *rest[i + 1 :]]
        yield [[rows[0]], *rest]
