"""The language model's forward pass for inference, in fewer operations than transformers'.

Weights, rotary table, masks and cache stay the model's own, the layers are
`tracelib.models.lean_layer`'s, and the last one computes only the states that are read.

Shapes: B rows, T tokens, D dimensions, C columns of keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from tracelib.models.lean_layer import MOST_SCORES, LeanLayer, Mask, Rotation, normalize
from tracelib.models.products import Product

_PROBE_ROWS, _PROBE_TOKENS = 8, 6  # many enough for products by oneDNN


def install_lean_forward(model: Any, head: nn.Module) -> LeanForward | None:
    """Have a language model read by a `LeanForward`, where that gives the same states.

    Args:
        model: The decoder of a causal language model.
        head: Its vocabulary head.

    Returns:
        The new forward pass, or None where the model goes on as it is, which is logged.
    """
    if isinstance(model.forward, LeanForward):
        return model.forward
    try:
        lean = LeanForward(model, head)
        difference = lean.compare()
        why = f"in fewer operations, states differ by {difference:.2g} of their size"
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        difference, why = torch.inf, str(error)
    if not difference < torch.finfo(model.dtype).eps ** 0.5:
        rank_zero_info(f"{type(model).__name__} is read by transformers' own layers: {why}")
        return None
    model.forward = lean
    return lean


class LeanForward:
    """What takes the place of a language model's `forward`.

    Where gradients, mixed precision or anything but the last layer's states are wanted, the model's
    own is asked. Hooks of its layers, and modules put into them later, are not seen. For one thread
    at a time.

    Args:
        model: Decoder of a Llama's build: RMS norms, attention and gated MLP on a residual stream,
            rotary positions.
        head: Its vocabulary head.

    Raises:
        AttributeError: It has no such parts.
        ValueError: Its attention is not `sdpa` over all tokens, or its weights are not plain.
    """

    def __init__(self, model: Any, head: nn.Module) -> None:
        attention = model.config._attn_implementation
        if attention != "sdpa":
            raise ValueError(f"attention is by {attention}, not by sdpa")
        self._model, self.head = model, head
        self._layers = [LeanLayer(layer, number) for number, layer in enumerate(model.layers)]
        self._predict = Product(head)
        self._last: Tensor | None = None

    @contextmanager
    def read_only(self, last: Tensor | None) -> Iterator[None]:
        """Until it closes, return `[B, 1, D]`, the states at places `[B]`; of None all."""
        self._last = last
        try:
            yield
        finally:
            self._last = None

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPast:
        """Return what the model returns, of its last layer."""
        model = self._model
        if past_key_values is None or not past_key_values.get_seq_length():
            self._refresh()
        if (
            torch.is_grad_enabled()
            or torch.is_autocast_enabled(model.device.type)
            or position_ids is None
            or (position_ids.ndim == 3 and len(position_ids) > 3)  # what `generate` has beside them
            or (use_cache and past_key_values is None)
            or any(value is not None for value in options.values())
        ):
            output: Any = type(model).forward(
                model,
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **options,
            )
            if self._last is not None:
                rows = torch.arange(len(self._last), device=self._last.device)
                output.last_hidden_state = output.last_hidden_state[rows, self._last][:, None]
            return output  # type: ignore[no-any-return]
        states: Tensor = model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = self._build_mask(states, attention_mask, past_key_values)
        rotation = Rotation(*model.rotary_emb(states, position_ids))
        last = self._last if states.shape[1] > 1 else None  # one token a row is the last
        for layer in self._layers[:-1]:
            states = layer(states, rotation, mask, past_key_values, None)
        states = self._layers[-1](states, rotation, mask, past_key_values, last)
        return BaseModelOutputWithPast(
            last_hidden_state=normalize(states, model.norm),
            past_key_values=past_key_values,
        )

    def _refresh(self) -> None:
        """Take the weights as they are now: nothing tells when their numbers have changed."""
        for layer in self._layers:
            layer.refresh()
        self._predict.refresh()

    def predict(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., V]` of states `[..., D]`, by the head as of the last prompt."""
        return self._predict(hidden)

    def _build_mask(self, states: Tensor, mask: Tensor | None, cache: Any) -> Mask:
        """Return who sees whom, from the padding mask `[B, C]` or one that `sdpa` takes."""
        num_tokens = states.shape[1]
        num_columns = num_tokens if cache is None else cache.get_mask_sizes(num_tokens, 0)[0]
        num_scores = len(states) * self._layers[0].num_queries * num_tokens * num_columns
        is_few = states.is_cpu and (num_tokens == 1 or num_scores <= MOST_SCORES)
        visible: Any
        if num_tokens == 1 and mask is not None and mask.shape == (len(states), num_columns):
            visible = mask.bool()[:, None, None]
        else:
            visible = create_causal_mask(
                config=self._model.config,
                inputs_embeds=states,
                attention_mask=mask,
                past_key_values=cache,
                position_ids=None,
                allow_is_causal_skip=not is_few,
            )
        if not is_few or visible.dtype != torch.bool:
            return Mask(visible, None)
        return Mask(None, torch.where(visible, 0.0, torch.finfo(torch.float32).min))

    @torch.no_grad()
    def compare(self) -> float:
        """Return how far states are from the model's own, relative to these, on random tokens."""
        model = self._model
        shape = _PROBE_ROWS, _PROBE_TOKENS
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(model.config.vocab_size, shape, generator=random).to(model.device)
        mask = torch.ones_like(ids)
        mask[0, 0] = 0  # padding
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        found: list[Tensor] = []
        for forward in (model.forward, self):
            cache, states = DynamicCache(), list[Tensor]()
            for start, stop in ((0, _PROBE_TOKENS - 1), (_PROBE_TOKENS - 1, _PROBE_TOKENS)):
                output: Any = forward(
                    input_ids=ids[:, start:stop],
                    attention_mask=mask[:, :stop],
                    position_ids=positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                )
                states.append(output.last_hidden_state)
            found.append(torch.cat(states, dim=1)[mask.bool()].float())
        return float((found[1] - found[0]).norm() / found[0].norm())
