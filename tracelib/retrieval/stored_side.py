"""The stored queries or candidates of a split: one part per column, shared among ranks.

Shapes: N records of the split on this side, B of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracelib.retrieval.store import SHARD_ROWS, Row, StoredPart, compute_digest

Shard = tuple[str, int]


class StoredSide:
    """A part per column, and who embeds what.

    Ranks take turns at groups of shards: small ones that fit into one batch together, also of
    different columns, and else a single one. A batch never leaves its group, so the bytes of a
    store do not depend on the number of ranks, nor on how often it was interrupted; what was in one
    batch, that is columns and batch size, shows in last digits.

    Args:
        folder: Folder of the parts, each in `<column>-<digest of its key>`.
        key: What the embeddings are of, as JSON values; see `StoredPart`.
        sources: What each column's records come from, e.g. a file's hash; part of its key.
        spans: Places of each column's records among all N.
        ids: `[N]` ids of the records.
        row_type: Layout of a row.
        first_places: `[N]` place of the first record of the same content in the same column, which
            is embedded for all of them; None when every record is embedded.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        sources: Mapping[str, Any],
        spans: Mapping[str, range],
        ids: Row,
        row_type: np.dtype[Any],
        first_places: Row | None = None,
    ) -> None:
        self.spans = dict(spans)
        self.row_type, self.num_records = row_type, len(ids)
        self.first_places = np.arange(len(ids)) if first_places is None else first_places
        self.parts = {}
        for column, span in self.spans.items():
            part_key = {**key, "column": column, "source": sources[column], "row": str(row_type)}
            self.parts[column] = StoredPart(
                folder / f"{column}-{compute_digest(part_key)}",
                part_key,
                ids[span.start : span.stop],
                row_type,
            )
        self._owned: set[Shard] = set()

    def list_open_shards(self) -> list[Shard]:
        """Return the shards that are not closed, as column and number."""
        return [
            (column, shard)
            for column, part in self.parts.items()
            for shard in range(part.num_shards)
            if not part.is_closed(shard)
        ]

    def plan_batches(
        self,
        lengths: Row,
        batch_size: int,
        open_shards: Sequence[Shard],
        rank: int = 0,
        world_size: int = 1,
    ) -> list[list[int]]:
        """Return this rank's batches that are not committed, records of similar length together.

        A rank without any gets one batch to repeat, which `write` then ignores: every rank takes
        part in the evaluation's end, and the first forward under DDP is one of all ranks.

        Args:
            lengths: `[N]` lengths to sort by.
            batch_size: Most records of a batch.
            open_shards: Shards to share out, the same list on every rank.
            rank: This process.
            world_size: Number of processes.
        """
        is_open = set(open_shards).__contains__
        groups = [group for group in self._group_shards(batch_size) if any(map(is_open, group))]
        self._owned = {shard for group in groups[rank::world_size] for shard in group}
        batches = []
        for group in groups[rank::world_size]:
            missing = np.concatenate([self._find_missing(*shard) for shard in group])
            for batch in self._cut_group(group, lengths, batch_size):
                if np.isin(batch, missing).any():
                    batches.append(batch.tolist())
        if batches:
            return batches
        first_group = self._group_shards(batch_size)[0]
        return [self._cut_group(first_group, lengths, batch_size)[0].tolist()]

    def _group_shards(self, batch_size: int) -> list[list[Shard]]:
        groups: list[list[Shard]] = []
        num_free = 0
        for column, part in self.parts.items():
            for shard in range(part.num_shards):
                num_records = len(self._list_places(column, shard))
                if num_records > num_free:
                    groups.append([])
                    num_free = batch_size
                groups[-1].append((column, shard))
                num_free -= num_records
        return groups

    def _list_places(self, column: str, shard: int) -> Row:
        span = self.spans[column][shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
        return np.arange(span.start, span.stop)

    def _find_missing(self, column: str, shard: int) -> Row:
        """Return the places of a shard that are not committed."""
        missing: Row = ~self.parts[column].find_committed(shard)
        return self._list_places(column, shard)[missing]

    def _cut_group(self, group: list[Shard], lengths: Row, batch_size: int) -> list[Row]:
        places = np.concatenate([self._list_places(*shard) for shard in group])
        places = places[self.first_places[places] == places]
        order = places[np.argsort(lengths[places], kind="stable")]
        return np.array_split(order, -(-len(order) // batch_size)) if len(order) else []

    def write(self, places: Sequence[int], values: Mapping[str, Row]) -> bool:
        """Commit a batch of `plan_batches`; return whether it was this rank's to embed.

        Raises:
            ValueError: An embedding is zero or not finite.
        """
        by_shard: dict[Shard, list[int]] = {}
        for row, place in enumerate(places):
            by_shard.setdefault(self._locate(place), []).append(row)
        owned = [shard for shard in by_shard if shard in self._owned]
        for column, shard in owned:
            rows, first = by_shard[column, shard], self.spans[column].start
            own = {name: value[rows] for name, value in values.items()}
            self.parts[column].write([places[row] - first for row in rows], own)
        return bool(owned)

    def flush(self) -> None:
        """Have what was written reach the disk, where other ranks may look for it."""
        for part in self.parts.values():
            part.flush()

    def fill_repeats(self) -> None:
        """Give records of the same content their first one's row; all ranks are done by now."""
        for column, shard in sorted(self._owned):
            part, first = self.parts[column], self.spans[column].start
            places = self._list_places(column, shard)
            for place in places[self.first_places[places] != places].tolist():
                row = part.read_committed(int(self.first_places[place]) - first)
                part.write_rows([place - first], row)
            part.close_whole(shard)

    def read(self, field: str) -> Row:
        """Return a field of all N records.

        Raises:
            StoreError: A shard is missing.
        """
        kind = self.row_type[field]
        values: Row = np.empty((self.num_records, *kind.shape), kind.base)
        for column, part in self.parts.items():
            part.read_into(field, values[self.spans[column].start : self.spans[column].stop])
        return values

    def iterate_chunks(
        self, column: str, chunk_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, Row]]:
        """Yield first place and embeddings of this rank's share of a column, chunk by chunk.

        Args:
            column: The column.
            chunk_size: Most records of a chunk.
            rank: This process; shares are stretches of shards.
            world_size: Number of processes.

        Raises:
            StoreError: A shard is missing.
        """
        part, start = self.parts[column], self.spans[column].start
        first, last = (part.num_shards * number // world_size for number in (rank, rank + 1))
        num_at_once = max(1, chunk_size // SHARD_ROWS)
        for shard in range(first, last, num_at_once):
            shards = list(part.iterate_shards(range(shard, min(last, shard + num_at_once))))
            block: Row = np.concatenate([rows["embedding"] for _, rows in shards])
            for offset in range(0, len(block), chunk_size):
                yield start + shards[0][0] + offset, block[offset : offset + chunk_size]

    def _locate(self, place: int) -> Shard:
        for column, span in self.spans.items():
            if place in span:
                return column, (place - span.start) // SHARD_ROWS
        raise IndexError(f"place {place} is in no column of {list(self.spans)}")
