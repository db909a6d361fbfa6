"""Hard negatives of one query, by walking down the ranking of a whole pool."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def mine(
    scores: Sequence[float],
    contents: Sequence[Hashable],
    positives: set[Hashable],
    depth: int,
    max_similarity: float,
    num_negatives: int,
) -> tuple[list[int], int, int]:
    """Return places of the negatives, positives passed over, and candidates above the cap."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    kept: list[int] = []
    seen: set[Hashable] = set()
    num_looked_at = num_positives = num_capped = 0
    for place in order:
        if num_looked_at == depth:
            break
        if contents[place] in positives:
            num_positives += 1
            continue
        num_looked_at += 1
        if scores[place] > max_similarity:
            num_capped += 1
        elif contents[place] not in seen and len(kept) < num_negatives:
            kept.append(place)
        seen.add(contents[place])
    return kept, num_positives, num_capped
