"""A layer of a language model in fewer and larger operations than transformers', for inference.

Projections of one input are one product, a residual is added by the product that it belongs to,
and on a CPU short prompts and single tokens attend by batched products.

Shapes: B rows, T tokens, D dimensions, Q heads of queries, K heads of keys, E numbers of a head,
C columns of keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tracelib.models.products import Product

MOST_SCORES = 2**20
"""Up to so many, products are faster than `sdpa` on a CPU; for one query a row they always are."""


class Mask(NamedTuple):
    """Who sees whom: one of the two, or neither for all that came before.

    Args:
        visible: `[B, 1, T, C]` whether a token sees a column, or what is added to the score.
        bias: `[B, 1, T, C]` what is added to the scores of attention by products, float32.
    """

    visible: Tensor | None
    bias: Tensor | None

    def select(self, rows: Tensor, places: Tensor, num_columns: int) -> Mask:
        """Return the mask of one token a row."""

        def pick(part: Tensor | None) -> Tensor | None:
            if part is None:
                return None
            return part.expand(len(rows), -1, -1, -1)[rows, :, places][:, :, None]

        if self.visible is None and self.bias is None:
            columns = torch.arange(num_columns, device=places.device)
            return Mask((columns <= places[:, None])[:, None, None], None)
        return Mask(pick(self.visible), pick(self.bias))


class Rotation:
    """Rotary positions.

    Args:
        cos: `[B, T, E]` cosines.
        sin: `[B, T, E]` sines.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self._half = cos.shape[-1] // 2
        self._cos = cos[:, :, None]
        self._sin = torch.cat([-sin[..., : self._half], sin[..., self._half :]], -1)[:, :, None]

    def turn(self, heads: Tensor) -> Tensor:
        """Return heads `[B, T, K, E]`, turned."""
        swapped = torch.cat([heads[..., self._half :], heads[..., : self._half]], dim=-1)
        return torch.addcmul(heads * self._cos, swapped, self._sin)


class LeanLayer:
    """What takes the place of a decoder layer, with its weights.

    Args:
        layer: A layer of a Llama's build; there may be norms on the heads of queries and keys.
        number: Its number in the cache.

    Raises:
        AttributeError: It has no such parts.
        ValueError: It attends to a sliding window, or its weights are not plain.
    """

    def __init__(self, layer: Any, number: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        if getattr(attention, "sliding_window", None) is not None:
            raise ValueError(f"layer {number} attends to a sliding window")
        self._number = number
        self._norm_in, self._norm_mlp = layer.input_layernorm, layer.post_attention_layernorm
        self._project = Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self._head_norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self._head_size, self._scale = attention.head_dim, attention.scaling
        self._out, self._down = Product(attention.o_proj), Product(mlp.down_proj)
        self._expand, self._activate = Product(mlp.gate_proj, mlp.up_proj), mlp.act_fn
        self.num_queries = attention.q_proj.out_features // self._head_size
        self.num_keys = attention.k_proj.out_features // self._head_size

    def refresh(self) -> None:
        """Take the weights as they are now."""
        for product in (self._project, self._out, self._expand, self._down):
            product.refresh()

    def __call__(
        self, states: Tensor, rotation: Rotation, mask: Mask, cache: Any, last: Tensor | None
    ) -> Tensor:
        """Return the states after the layer.

        Args:
            states: `[B, T, D]` before it.
            rotation: Of the tokens.
            mask: Over the columns.
            cache: Takes keys and values, or None.
            last: `[B]` the one place of each row whose state is wanted, or None for all.

        Returns:
            `[B, T, D]`, or `[B, 1, D]`.
        """
        heads = self._project(normalize(states, self._norm_in))
        heads = heads.view(*heads.shape[:-1], -1, self._head_size)
        sizes = [self.num_queries, self.num_keys]
        turned, value = torch.split(heads, [sum(sizes), self.num_keys], dim=2)
        turned = rotation.turn(self._normalize_heads(turned, sizes))
        query, key = torch.split(turned, sizes, dim=2)
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self._number)
        if last is not None:
            rows = torch.arange(len(last), device=last.device)
            mask = mask.select(rows, last, key.shape[2])
            query, states = query[rows, last][:, None], states[rows, last][:, None]
        states = self._out.add_to(states, self._attend(query, key, value, mask))
        gate, up = self._expand(normalize(states, self._norm_mlp)).chunk(2, dim=-1)
        return self._down.add_to(states, self._activate(gate).mul_(up))

    def _normalize_heads(self, heads: Tensor, sizes: list[int]) -> Tensor:
        """Return heads of queries and keys `[B, T, Q + K, E]`, normalised where the model does."""
        if self._head_norms == [None, None]:
            return heads
        parts = zip(torch.split(heads, sizes, dim=2), self._head_norms, strict=True)
        return torch.cat([normalize(part, norm) for part, norm in parts], dim=2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        """Return `[B, T, Q * E]`, what queries `[B, T, Q, E]` see."""
        if mask.bias is not None:
            return attend_by_products(query, key, value, mask.bias, self._scale)
        num_groups = self.num_queries // self.num_keys
        if mask.visible is not None and not query.is_cpu:
            # on a GPU, a mask and shared keys together leave sdpa its slowest way only
            key, value = (part.repeat_interleave(num_groups, dim=1) for part in (key, value))
            num_groups = 1
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key,
            value,
            attn_mask=mask.visible,
            scale=self._scale,
            is_causal=mask.visible is None and query.shape[1] > 1,
            enable_gqa=num_groups > 1,
        )
        return seen.transpose(1, 2).flatten(2)


def attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Return what `sdpa` does, by batched products over whole matrices of scores.

    All is counted in float32 whatever the type, as in `sdpa`.

    Args:
        query: `[B, T, Q, E]`.
        key: `[B, K, C, E]`; Q / K queries have one key.
        value: `[B, K, C, E]`.
        bias: `[B, 1, T, C]` what is added to the scores, or None.
        scale: Of the scores.

    Returns:
        `[B, T, Q * E]`.
    """
    shape = len(query), query.shape[2], query.shape[1], key.shape[2]  # [B, Q, T, C]
    queries = query.view(*query.shape[:2], key.shape[1], -1, query.shape[3])
    queries = queries.permute(0, 2, 3, 1, 4).float()
    queries = queries.reshape(-1, shape[1] // key.shape[1] * shape[2], query.shape[3])
    columns = key.flatten(0, 1).float().transpose(1, 2)
    scores = torch.bmm(queries, columns).view(shape)
    del columns
    scores = scores.mul_(scale) if bias is None else torch.add(bias, scores, alpha=scale)
    weights = scores.softmax(-1).view(*queries.shape[:2], -1)
    seen = torch.bmm(weights, value.flatten(0, 1).float()).view(*shape[:3], -1)
    return seen.transpose(1, 2).flatten(2).to(query.dtype)


def normalize(states: Tensor, norm: Any) -> Tensor:
    """Return states `[..., D]` after a module that is an RMS norm."""
    weight: Tensor = norm.weight
    return functional.rms_norm(states, weight.shape, weight, norm.variance_epsilon)
