"""Keys and values of the rows being decoded, in slots that finished rows leave to waiting ones.

The columns are a ring, for attention asks no order of them. All rows end at the same column, so a
step writes one column of every row in place, where the ring's oldest is that no row has need of;
and a prompt that comes in while others are halfway stands right behind them.

Shapes: A active rows, B rows of another cache, N rows to add, H heads, T tokens, C columns, E
numbers of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

_SPARE_COLUMNS = 16  # by which the longest row may grow before the ring does


class DecodeCache(Cache):
    """Rows of keys and values, of which the first `num_active` are decoded.

    Memory once taken is kept, also from one batch to the next: on a CPU, taking it anew costs more
    than filling it.

    Args:
        num_slots: Most rows at a time.
    """

    @torch.inference_mode(mode=False)
    def __init__(self, num_slots: int) -> None:
        self._slots: list[_DecodeLayer] = []
        super().__init__(layers=self._slots)  # type: ignore[arg-type]
        self.num_slots, self.num_active = num_slots, 0
        self.next = 0
        """The column that a step writes."""
        self._lengths = torch.zeros(num_slots, dtype=torch.long)
        self._is_token = torch.zeros(num_slots, 0, dtype=torch.long)
        self._spare: Tensor | None = None  # what keys or values of a layer have moved out of

    @torch.inference_mode(mode=False)
    def clear(self) -> None:
        """Let all rows go, and all columns: their number shows in a result's last digits."""
        self.num_active = self.next = 0
        self._is_token = self._is_token[:, :0]
        for layer in self._slots:
            for tensor in (layer.keys, layer.values):
                tensor.resize_(*tensor.shape[:2], 0, tensor.shape[3])  # its memory stays

    @property
    def num_columns(self) -> int:
        """C, all columns of the ring."""
        return self._is_token.shape[1]

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
        prefilled: Any = source.layers
        is_known = len(self._slots) == len(prefilled)
        if not is_known or not self._slots[0].is_like(prefilled[0].keys):
            self._slots[:] = [_DecodeLayer(self, given.keys) for given in prefilled]
            self._is_token = self._is_token[:, :0].to(attention_mask.device)
            self._spare = None
        rows_there = rows.to(attention_mask.device)
        mask = attention_mask.index_select(0, rows_there)
        lengths = mask.sum(-1)
        slots = slice(self.num_active, self.num_active + len(rows))
        self._lengths[slots] = lengths.cpu()
        self._fit(int(self._lengths[: slots.stop].max()))
        # the last token of each row comes right before the next column, wherever its padding was
        longest, last = int(lengths.max()), mask.shape[1] - 1 - mask.flip(-1).argmax(-1)
        back = torch.arange(longest - 1, -1, -1, device=mask.device)
        columns = (last[:, None] - back).clamp(min=0)
        is_left_padded = bool((last == mask.shape[1] - 1).all())

        def put(ours: Tensor, taken: Tensor) -> None:
            """Write tokens `[N, longest, ...]` into the ring's last columns."""
            ours[slots] = 0  # a NaN stays one, though it weighs nothing
            num_wrapped = max(0, longest - self.next)
            ours[slots, self.num_columns - num_wrapped :] = taken[:, :num_wrapped]
            ours[slots, max(0, self.next - longest) : self.next] = taken[:, num_wrapped:]

        put(self._is_token, (back < lengths[:, None]).long())
        for layer, given in zip(self._slots, prefilled, strict=True):
            for ours, theirs in ((layer.keys, given.keys), (layer.values, given.values)):
                if is_left_padded:  # slices are copied faster than places
                    taken = theirs.index_select(0, rows_there)[:, :, -longest:].transpose(1, 2)
                else:
                    taken = theirs[rows_there[:, None], :, columns]
                put(ours.transpose(1, 2), taken)
        self.num_active = slots.stop
        self._is_token[: self.num_active, self.next] = 1

    def advance(self) -> None:
        """Count the column that a step has written."""
        self._lengths[: self.num_active] += 1
        self.next = (self.next + 1) % self.num_columns
        self._fit(int(self._lengths[: self.num_active].max()))
        self._is_token[: self.num_active, self.next] = 1

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
            for layer in self._slots:
                for tensor in (layer.keys, layer.values):
                    tensor.index_copy_(0, to, tensor.index_select(0, source))
        self.num_active = num_kept
        return order

    @torch.inference_mode(mode=False)  # what is kept may be written to in either mode
    def _fit(self, longest: int) -> None:
        """Have the columns that a row of so many tokens needs, the next one included.

        Attention sees all columns, so that far too many would cost time.
        """
        if 1 <= self.num_columns - longest <= 2 * _SPARE_COLUMNS:
            return
        num_kept = int(self._lengths[: self.num_active].max()) if self.num_active else 0
        first = (self.next - num_kept) % self.num_columns if num_kept else 0
        num_head = min(num_kept, self.num_columns - first)

        def move(tensor: Tensor, room: Tensor | None) -> Tensor:
            """Put the columns in use to the front, in other memory."""
            shape = *tensor.shape[:2], longest + _SPARE_COLUMNS, *tensor.shape[3:]
            size = math.prod(shape) * tensor.itemsize
            if room is None or room.untyped_storage().nbytes() < size:
                whole = tensor.new_empty(shape)  # free slots stay as they are, and take no time
            else:
                whole = room.resize_(shape)
            old, new = tensor[: self.num_active], whole[: self.num_active]
            new[:, :, :num_head] = old[:, :, first : first + num_head]
            new[:, :, num_head:num_kept] = old[:, :, : num_kept - num_head]
            new[:, :, num_kept:] = 0
            return whole

        self._is_token = move(self._is_token[:, None], None)[:, 0]
        for layer in self._slots:
            layer.keys, self._spare = move(layer.keys, self._spare), layer.keys
            layer.values, self._spare = move(layer.values, self._spare), layer.values
        self.next = num_kept


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
        shape = cache.num_slots, given.shape[1], 0, given.shape[3]
        self.keys, self.values = given.new_zeros(shape), given.new_zeros(shape)
        self.is_initialized = True

    def is_like(self, given: Tensor) -> bool:
        """Return whether a tensor is of the same kind."""
        return (self.keys.dtype, self.keys.device) == (given.dtype, given.device) and (
            self.keys.shape[1::2] == given.shape[1::2]
        )

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the cache allocates."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `[A, H, 1, E]` into the next column; return all columns, `[A, H, C, E]`."""
        active, column = self._cache.num_active, self._cache.next
        self.keys[:active, :, column] = key_states[:, :, 0]
        self.values[:active, :, column] = value_states[:, :, 0]
        return self.keys[:active], self.values[:active]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return all columns, and where they start."""
        return self._cache.num_columns, 0

    def get_seq_length(self) -> int:
        """Return the last column, so that a causal mask hides none: the padding mask tells all."""
        return self._cache.num_columns - 1

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1
