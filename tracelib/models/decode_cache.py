"""Keys and values of the rows being decoded, in slots that finished rows leave to waiting ones.

All rows end at the same column, so a step writes one column of every row in place, and a prompt
that comes in while others are halfway stands against the same right edge.

Shapes: A active rows, B rows of another cache, N rows to add, H heads, T tokens, C columns, E
numbers of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

_SPARE_COLUMNS = 16  # steps until the columns in use are moved back to the front


class DecodeCache(Cache):
    """Rows of keys and values, of which the first `num_active` are decoded.

    Args:
        num_slots: Most rows at a time.
    """

    def __init__(self, num_slots: int) -> None:
        self._slots: list[_DecodeLayer] = []
        super().__init__(layers=self._slots)  # type: ignore[arg-type]
        self.num_slots, self.num_active = num_slots, 0
        # no row has a token outside the columns from start to stop
        self.start = self.stop = 0
        self._lengths = torch.zeros(num_slots, dtype=torch.long)
        self._is_token = torch.zeros(0, 0, dtype=torch.long)

    @property
    def attention_mask(self) -> Tensor:
        """`[A, C]` 1 on the active rows' tokens, the one of the next step included."""
        return self._is_token[: self.num_active]

    def add_rows(self, source: DynamicCache, rows: Tensor, attention_mask: Tensor) -> None:
        """Put rows of a prefilled cache into free slots, behind the active ones.

        Args:
            source: Cache of `[B, H, T, E]`.
            rows: `[N]` its rows to take, on the CPU; not more than there are free slots.
            attention_mask: `[B, T]` 1 on tokens, padded on either side.
        """
        rows_there = rows.to(attention_mask.device)
        mask = attention_mask.index_select(0, rows_there)
        lengths = mask.sum(-1)
        width = int(lengths.max())
        self._make_room(source, len(rows), width)
        # the last token of each row comes to the right edge, wherever its padding was
        last = mask.shape[1] - 1 - mask.flip(-1).argmax(-1)
        back = torch.arange(1 - width, 1, device=mask.device)
        columns = (last[:, None] + back).clamp(min=0)
        slots = slice(self.num_active, self.num_active + len(rows))
        edge = slice(self.stop - width, self.stop)
        prefilled: Any = source.layers
        for layer, given in zip(self._slots, prefilled, strict=True):
            for ours, theirs in ((layer.keys, given.keys), (layer.values, given.values)):
                ours[slots, :, edge] = theirs[rows_there[:, None], :, columns].transpose(1, 2)
        self._is_token[slots] = 0
        self._is_token[slots, edge] = (-back < lengths[:, None]).long()
        self._lengths[slots] = lengths.cpu()
        self.num_active += len(rows)
        self._is_token[: self.num_active, self.stop] = 1
        self._trim()

    def advance(self) -> None:
        """Count the column that a step has written."""
        self._lengths[: self.num_active] += 1
        self.stop += 1
        if self.stop == self._is_token.shape[1]:
            self._move(len(self._is_token), self.stop - self.start)
        self._is_token[: self.num_active, self.stop] = 1

    def drop_rows(self, goes: Tensor) -> Tensor:
        """Free the slots of some active rows, and fill the holes from behind.

        Args:
            goes: `[A]` bool, on the CPU; which rows leave.

        Returns:
            The former slots of the rows that stay, in their new order.
        """
        num_kept = int((~goes).sum())
        order = torch.arange(self.num_active)
        holes, movers = order[:num_kept][goes[:num_kept]], order[num_kept:][~goes[num_kept:]]
        order = order[:num_kept]
        if len(holes):
            order[holes] = movers
            self._lengths[holes] = self._lengths[movers]
            to, source = (slots.to(self._is_token.device) for slots in (holes, movers))
            self._is_token[to] = self._is_token[source]
            columns = slice(self.start, self.stop)
            for layer in self._slots:
                for tensor in (layer.keys, layer.values):
                    tensor[to, :, columns] = tensor[source, :, columns]
        self.num_active = num_kept
        self._trim()
        return order

    def _trim(self) -> None:
        """Leave out the columns that no active row reaches back to."""
        lengths = self._lengths[: self.num_active]
        self.start = self.stop - (int(lengths.max()) if len(lengths) else 0)

    def _make_room(self, source: DynamicCache, num_rows: int, width: int) -> None:
        """See that prompts of `width` tokens fit before the right edge, and a step behind them."""
        if not self._slots:
            prefilled: Any = source.layers
            self._slots += [_DecodeLayer(self, given.keys) for given in prefilled]
            self._is_token = self._is_token.to(self._slots[0].keys.device)
        num_rows += self.num_active
        if num_rows > len(self._is_token) or width > self.stop:
            in_use = self.stop - self.start
            self._move(max(num_rows, len(self._is_token)), max(width, in_use))

    def _move(self, num_rows: int, stop: int) -> None:
        """Let the columns in use end at `stop`, in tensors of just their size.

        Attention sees all columns, so that loose ones would cost time.
        """
        columns = slice(self.start, self.stop)
        self.start, self.stop = stop - (self.stop - self.start), stop
        place = slice(self.start, self.stop)

        def move(tensor: Tensor) -> Tensor:
            shape = num_rows, *tensor.shape[1:-2], stop + _SPARE_COLUMNS, tensor.shape[-1]
            moved = tensor.new_zeros(shape)
            moved[: self.num_active, ..., place, :] = tensor[: self.num_active, ..., columns, :]
            return moved

        self._is_token = move(self._is_token[..., None])[..., 0]
        for layer in self._slots:
            layer.keys, layer.values = move(layer.keys), move(layer.values)


class _DecodeLayer(CacheLayerMixin):
    """One layer of a `DecodeCache`: keys and values, [rows, H, columns, E].

    Args:
        cache: It allocates, and says which rows and columns are in use.
        given: `[B, H, T, E]` a tensor of the same kind.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, cache: DecodeCache, given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache
        shape = 0, given.shape[1], 0, given.shape[3]
        self.keys, self.values = given.new_zeros(shape), given.new_zeros(shape)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the cache allocates."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `[A, H, 1, E]` behind the columns in use; return all columns, `[A, H, C, E]`.

        Those in use alone would have gaps between rows, which slow attention on a CPU.
        """
        active, stop = self._cache.num_active, self._cache.stop
        self.keys[:active, :, stop : stop + 1] = key_states
        self.values[:active, :, stop : stop + 1] = value_states
        return self.keys[:active], self.values[:active]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return all columns, and where they start."""
        return self.keys.shape[-2], 0

    def get_seq_length(self) -> int:
        """Return the columns before that of the step."""
        return self._cache.stop

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1
