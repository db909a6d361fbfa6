"""Exact cosine search that streams over the pool: filtered coarsely, scored exactly.

A tile of candidates passes three sieves. Coarse products drop nearly all that cannot reach a
query's k-th best (`tracelib.retrieval.coarse`), float32 scores of the rest drop most of those, and
the last are scored to the last bit (`tracelib.retrieval.cosines`). The sieves drop only what a
bound proves to be no hit, so they, the chunks and their order cannot change the result. What a
query's k-th best may be is guessed from a sample at first; a guess too high is found out.

Shapes: Q queries, C candidates, D dimensions, N rows of candidates, P pairs of query and row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from tracelib.retrieval import coarse, fused
from tracelib.retrieval.coarse import COARSE_TYPES
from tracelib.retrieval.cosines import (
    MAX_CANDIDATES,
    NO_HIT,
    UNIT_STEPS,
    decode_hits,
    encode_hits,
    keep_best,
    keep_best_of_pairs,
    round_scores,
    round_units,
)
from tracelib.retrieval.guess import guess_kth_best
from tracelib.retrieval.tiles import Pairs, QueryBlock, Tile, count_pairs, join_pairs

_QUERY_BLOCK = 1024
_TILE_ROWS = 2048
_NUM_PROBES = 128
_NUM_PROBE_ROWS = 512
_PAIR_NUMBERS = 2**18  # coordinates of the pairs scored at once: what a cache holds
_FEW_PAIRS = 2**15  # a rise of the k-th best is worth looking for after so many
_MANY_PAIRS = 2**18
_DENSE_SHARE = 1 / 16  # of all pairs: beyond it, scoring all costs less than scoring some
_LEADING_SHARE = 3 / 4  # of the coordinates: these alone drop most once the k best are close
_LEADING_UNIT = 64  # coordinates: int8 products are slow at lengths between its multiples
_SPARSE_SHARE = 1 / 128  # of all pairs: beyond it, multiplying all coordinates costs less
_PAUSE = 16
_QUERY_BYTES = 4 + 4 + 2 * 2 + 2  # of a coordinate: exact, float32, int8 twice, laid out, bfloat16
_HIT_BYTES = 100
_TILE_BYTES = 40  # of a coordinate
_BLOCK_BYTES = 12  # of a coordinate
_PRODUCT_BYTES = 64
_PAIR_BYTES = 120
# coarse type, number of leading coordinates or None for all, most of all pairs to let through
_Sieve = tuple[torch.dtype, int | None, float]


class TopKSearch:
    """The k candidates of highest cosine per query, ties in pool order, of a pool in chunks.

    Nothing is excluded: a candidate that equals the query ranks like any other (M-BEIR).

    Args:
        queries: `[Q, D]` embeddings of any length and float type; they fix the device.
        k: Candidates to keep per query, 1 and above.
        coarse_types: Number types to filter by, from `COARSE_TYPES`, coarse to fine; none scores
            everything exactly. By default what is fast on this machine. Never changes the result.

    Raises:
        ValueError: `queries` is no matrix, k is below 1, a coarse type is unknown, or a query is
            zero or not finite.
    """

    @torch.no_grad()
    def __init__(
        self, queries: Tensor, k: int, coarse_types: Sequence[torch.dtype] | None = None
    ) -> None:
        if queries.ndim != 2 or not queries.shape[1]:
            raise ValueError(f"queries {tuple(queries.shape)}; expected [Q, D] with D >= 1")
        if k < 1:
            raise ValueError(f"k is {k}; allowed 1 and above")
        if not set(coarse_types or ()) <= set(COARSE_TYPES):
            raise ValueError(f"coarse_types are {coarse_types}; allowed {COARSE_TYPES}")
        self._wanted_types = coarse_types
        self._coarse_types: list[torch.dtype] | None = None
        self._num_seen = 0
        self._direction: Tensor | None = None
        self._slack = coarse.find_slack(queries.shape[1])
        self._pairs_at_once = -(-_PAIR_NUMBERS // queries.shape[1])
        # int32 holds all that float64 would, at half the size
        steps = torch.empty(queries.shape, dtype=torch.int32, device=queries.device)
        for start in range(0, len(queries), _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            steps[block] = round_units(queries[block], "query", start)
        self._num_leading = int(queries.shape[1] * _LEADING_SHARE) // _LEADING_UNIT * _LEADING_UNIT
        self._take_queries(steps, k)

    def _take_queries(self, steps: Tensor, k: int) -> None:
        """Begin with queries `[Q, D]`, unit vectors in steps, and no hits."""
        self._steps = steps
        self._blocks = {
            start: QueryBlock(steps[start : start + _QUERY_BLOCK])
            for start in range(0, len(steps), _QUERY_BLOCK)
        }
        self._best = torch.full((len(steps), k), NO_HIT, device=steps.device)
        # lower bounds of the k best scores, ahead of `_best` within a chunk
        self._floor = torch.full((len(steps), k), -torch.inf, device=steps.device)

    @property
    def common_direction(self) -> Tensor | None:
        """`[D]` the direction of all candidates so far, None once two differ."""
        return self._direction

    @staticmethod
    def multiply(queries: Tensor, rows: Tensor) -> Tensor:
        """Return `[B, N]` products of coarse values `[B, D]` and `[N, D]`.

        One overridden to err by more than float32 would is found out and not used. Int8 is
        multiplied elsewhere where a processor can compare as it multiplies.
        """
        return coarse.multiply(queries, rows)

    @torch.no_grad()
    def add(self, rows: Tensor, first_place: int) -> None:
        """Search a chunk of the pool; chunks may come in any order.

        A large chunk of a memory-mapped pool costs no more memory than a small one, and less time.

        Args:
            rows: `[N, D]` embeddings of any length and float type; may stay in host memory.
            first_place: Place of the first row in the pool; all are in 0 .. 2^32 - 1, and none may
                come twice.

        Raises:
            ValueError: Shape or places do not fit, or a row is zero or not finite.
        """
        num_dimensions = self._steps.shape[1]
        if rows.ndim != 2 or rows.shape[1] != num_dimensions:
            raise ValueError(f"rows {tuple(rows.shape)}; expected [N, {num_dimensions}]")
        if not 0 <= first_place <= MAX_CANDIDATES - len(rows):
            raise ValueError(
                f"first_place is {first_place} for {len(rows)} rows; allowed 0 .. "
                f"{MAX_CANDIDATES - len(rows)}"
            )
        rows = rows.to(self._steps.device)
        self._compare_directions(rows, first_place)
        k = self._best.shape[1]
        guess = None if self._num_seen else guess_kth_best(rows, k, self._find_least_best)
        if guess is not None:
            self._floor = guess.repeat(1, k)
        self._scan(rows, first_place)
        if guess is not None:
            self._search_again(rows, first_place)
        self._num_seen += len(rows)

    def _scan(self, rows: Tensor, first_place: int) -> None:
        """Merge a chunk into the best."""
        fresh: list[Pairs] = []
        waiting: list[Pairs] = []
        for start in range(0, len(rows), _TILE_ROWS):
            tile = Tile(rows[start : start + _TILE_ROWS], first_place + start)
            for block in self._blocks:
                pairs = self._sift(block, tile)
                if pairs is None:
                    self._score_all(block, tile)
                else:
                    fresh.append(pairs._replace(row=pairs.row + start))
                if count_pairs(fresh) > _FEW_PAIRS:
                    waiting.append(self._raise_floor(fresh))
                    fresh = []
                if count_pairs(waiting) > _MANY_PAIRS:
                    waiting = [self._drop_low(join_pairs(waiting))]
                    if count_pairs(waiting) > _MANY_PAIRS // 2:
                        self._score_pairs(waiting, rows, first_place)
                        waiting = []
        if count_pairs(fresh):
            waiting.append(self._raise_floor(fresh))
        if count_pairs(waiting):
            self._score_pairs(waiting, rows, first_place)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the best candidates so far, also where all are equal: it may be a share of a pool.

        Returns:
            `[Q, min(k, seen)]` float32 cosines in -1 .. 1, best first, rounded to a multiple of
            2^-24, and int64 places in the pool.
        """
        return decode_hits(self._best[:, : self._num_seen])

    def _compare_directions(self, rows: Tensor, first_place: int) -> None:
        """Forget the common direction at the first row that leaves it."""
        start = 0
        while start < len(rows) and (self._direction is not None or self._num_seen + start == 0):
            stop = start + (_TILE_ROWS if start else 2)
            steps = round_units(rows[start:stop], "candidate", first_place + start)
            direction = steps[0] if self._direction is None else self._direction
            self._direction = direction if bool((steps == direction).all()) else None
            start = stop

    def _find_least_best(self, tile: Tile) -> Tensor | None:
        """Return `[Q, G]`, at most the best cosines of groups of a tile's rows."""
        kinds = self._choose_types(tile) if self._blocks else []
        if not kinds:
            return None
        theirs, best = tile.round(kinds[0]), []
        for queries in self._blocks.values():
            ours = queries.round(kinds[0])
            products = self.multiply(ours.values, theirs.values)
            best.append(coarse.find_least_best(products, ours, theirs))
        return torch.cat(best)

    def _search_again(self, rows: Tensor, first_place: int) -> None:
        """Search a first chunk without a guess for queries that found fewer than k as good."""
        floor, found = self._floor[:, -1], decode_hits(self._best)[0][:, -1]
        short = (found < floor).nonzero().flatten()
        for part in torch.split(short, _QUERY_BLOCK):  # hardly ever one, and small for all that
            if len(part):
                again = copy.copy(self)
                again._take_queries(self._steps[part], self._best.shape[1])
                again._scan(rows, first_place)
                self._best[part], self._floor[part] = again._best, again._floor

    def _choose_types(self, tile: Tile) -> list[torch.dtype]:
        """Return the coarse types to filter by, chosen at the first tile."""
        if self._coarse_types is None:
            queries = self._steps[:_NUM_PROBES] / UNIT_STEPS
            rows = tile.values[:_NUM_PROBE_ROWS] / tile.norms[:_NUM_PROBE_ROWS]
            self._coarse_types = coarse.choose_types(
                queries, rows, self.multiply, self._wanted_types
            )
        return self._coarse_types

    def _sift(self, block: int, tile: Tile) -> Pairs | None:
        """Return the pairs of a block of queries and a tile that may be hits, None for most."""
        floor = self._floor[block : block + _QUERY_BLOCK, -1:]
        if floor.min().item() == -torch.inf:  # fewer than k candidates so far
            return None
        for coarse_type, num_leading, max_share in self._list_sieves(self._blocks[block], tile):
            queries = self._blocks[block].round(coarse_type, num_leading)
            rows = tile.round(coarse_type, num_leading)
            packed = self._blocks[block].pack(num_leading) if coarse_type is torch.int8 else None
            if packed is None:
                products = self.multiply(queries.values, rows.values)
                found = coarse.find_reaching(products, queries, rows, floor, max_share)
            else:
                found = fused.find_reaching(queries, packed, rows, floor, max_share)
            if found is not None:
                score = self._estimate_pairs(block, *found, tile)
                return self._drop_low(Pairs(found[0] + block, found[1], score))
            self._blocks[block].pause = _PAUSE
        return None

    def _list_sieves(self, queries: QueryBlock, tile: Tile) -> list[_Sieve]:
        """Return the sieves to try, in order."""
        kinds = self._choose_types(tile)
        sieves: list[_Sieve] = [(kind, None, _DENSE_SHARE) for kind in kinds]
        queries.pause -= 1
        if queries.pause < 0 and torch.int8 in kinds and self._num_leading:
            sieves.insert(0, (torch.int8, self._num_leading, _SPARSE_SHARE))
        return sieves

    def _estimate_pairs(self, block: int, query: Tensor, row: Tensor, tile: Tile) -> Tensor:
        """Return `[P]` float32 cosines of a block's queries, in rising order, and a tile's rows."""
        if tile.values.is_cpu:
            units = self._blocks[block].values
            products = coarse.sample_products(units, tile.values, query, row)
        else:
            products = self._multiply_pairs(query + block, row, tile.values).div_(UNIT_STEPS)
        return products.div_(tile.norms[row, 0])

    def _multiply_pairs(self, query: Tensor, row: Tensor, values: Tensor) -> Tensor:
        """Return `[P]` products of queries, in steps, and rows of `values`, in their type."""
        products = values.new_empty(len(query))
        for start in range(0, len(query), self._pairs_at_once):
            part = slice(start, start + self._pairs_at_once)
            ours = self._steps.index_select(0, query[part])
            products[part] = (ours * values.index_select(0, row[part])).sum(dim=1)
        return products

    def _drop_low(self, pairs: Pairs) -> Pairs:
        """Return the pairs whose score may reach the k best."""
        high = pairs.score + self._slack >= self._floor[pairs.query, -1]
        return Pairs(pairs.query[high], pairs.row[high], pairs.score[high])

    def _raise_floor(self, parts: Sequence[Pairs]) -> Pairs:
        """Let pairs raise the lower bounds; return those still high enough."""
        pairs = join_pairs(parts)
        keep_best_of_pairs(self._floor, pairs.query, pairs.score - self._slack)
        return self._drop_low(pairs)

    def _score_all(self, block: int, tile: Tile) -> None:
        """Merge all rows of a tile into the best of a block of queries."""
        queries = slice(block, block + _QUERY_BLOCK)
        scores = round_scores(self._steps[queries].double() @ tile.steps.T)
        places = torch.arange(len(tile.steps), device=scores.device) + tile.first_place
        self._best[queries] = keep_best(self._best[queries], encode_hits(scores, places))
        self._floor[queries] = keep_best(self._floor[queries], scores)

    def _score_pairs(self, parts: Sequence[Pairs], rows: Tensor, first_place: int) -> None:
        """Merge the pairs waiting, of which those may be hits, into the best of their queries."""
        pairs = self._drop_low(join_pairs(parts))
        if not len(pairs.query):  # better ones were found meanwhile
            return
        row, order = pairs.row.sort()  # neighbours share rows, which are rounded once
        query = pairs.query[order]
        # one tensor for all: small ones that stay, between large that go, would scatter memory
        products = torch.empty(len(row), dtype=torch.float64, device=row.device)
        for start in range(0, len(row), self._pairs_at_once):
            part = slice(start, start + self._pairs_at_once)
            used, position = torch.unique_consecutive(row[part], return_inverse=True)
            steps = round_units(rows[used], "candidate", first_place)
            products[part] = self._multiply_pairs(query[part], position, steps)
        keys = encode_hits(round_scores(products), row + first_place)
        keep_best_of_pairs(self._best, query, keys)
        # a guess holds until k rows are found that reach it
        self._floor = torch.maximum(decode_hits(self._best)[0], self._floor[:, -1:])


def estimate_search_bytes(num_queries: int, embedding_size: int, k: int, chunk_size: int) -> int:
    """Return the most working memory of a `TopKSearch`, beside its queries and the pool.

    It does not depend on the pool's size. A device adds the chunks moved to it.

    Args:
        num_queries: Q.
        embedding_size: D.
        k: Candidates kept per query.
        chunk_size: Candidates handed over at once.
    """
    block, tile = min(num_queries, _QUERY_BLOCK), min(chunk_size, _TILE_ROWS)
    queries = num_queries * (_QUERY_BYTES * embedding_size + _HIT_BYTES * k)
    vectors = (block * _BLOCK_BYTES + tile * _TILE_BYTES) * embedding_size
    products = block * (tile + k) * _PRODUCT_BYTES
    waiting = min(round(num_queries * chunk_size * _DENSE_SHARE), _MANY_PAIRS) * _PAIR_BYTES
    return queries + vectors + products + waiting
