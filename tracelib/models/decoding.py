"""The rows of one batch on their way through the decode batch.

Shapes: B queries (or samples), P queries of a part, N of them that go on, A rows being decoded,
T tokens, D dimensions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from tracelib.models.decode_cache import DecodeCache
from tracelib.models.encoder import Encoder
from tracelib.models.gates import GateFeatures
from tracelib.models.sampling import Sampling
from tracelib.types import EncoderInput

_REFILL_SHARE = 1 / 16  # of all slots, filled at once: filling has a cost of its own


@dataclass
class EngineOutput:
    """What became of a batch of queries, in host memory.

    Args:
        embeddings: `[B, D]` states at the read position, float32, not normalised.
        direct_embeddings: `[B, D]` states after the prompt, which a query that does not think is
            embedded by where the read offset is -1.
        thinks: `[B]` whether the gate had the query think.
        think_probability: `[B]` the router's probability, not calibrated; NaN without a router.
        emb_is_first: `[B]` whether the embedding token was the most likely first token.
        rationale_token_ids: What each query wrote before its embedding token; empty for a bypass.
        is_forced: `[B]` whether the limit was reached and the embedding token appended.
    """

    embeddings: Tensor
    direct_embeddings: Tensor
    thinks: Tensor
    think_probability: Tensor
    emb_is_first: Tensor
    rationale_token_ids: list[list[int]]
    is_forced: Tensor


@dataclass(frozen=True)
class Prefill:
    """A part of the prompts, read.

    Args:
        cache: Keys and values.
        mask: `[P, T]` 1 on tokens.
        positions: `[P, 1]` rotary position of the next token.
        states: `[P, D]` states that predict it.
        logits: `[P, V]` its logits.
        features: What the gate saw.
        thinks: `[P]` what it decided.
    """

    cache: DynamicCache
    mask: Tensor
    positions: Tensor
    states: Tensor
    logits: Tensor
    features: GateFeatures
    thinks: Tensor


@dataclass
class _Rows:
    """Rows that are decoded, or wait to be.

    Args:
        places: `[A]` their places in the output.
        tokens: `[A, 1]` the next token to read.
        positions: `[A, 1]` its rotary position.
        written: `[A]` tokens of the thought so far, that one included.
        history: `[A, max_rationale_tokens]` these tokens.
        uniforms: `[A, max_rationale_tokens + 1]` the random numbers that draw the tokens.
    """

    places: Tensor
    tokens: Tensor
    positions: Tensor
    written: Tensor
    history: Tensor
    uniforms: Tensor

    def select(self, rows: Tensor) -> _Rows:
        """Return some rows."""
        rows = rows.to(self.places.device)
        return _Rows(*(value.index_select(0, rows) for value in vars(self).values()))

    def join(self, other: _Rows) -> _Rows:
        """Return these rows and then the others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Rows(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class _Waiting:
    """Rows of a part that have no slot yet.

    Args:
        cache: Keys and values of N of the part's queries.
        mask: `[N, T]` 1 on their tokens.
        sources: `[A]` each row's query among them, on the CPU.
        rows: The rows.
    """

    cache: DynamicCache
    mask: Tensor
    sources: Tensor
    rows: _Rows

    def split(self, num_rows: int) -> tuple[_Waiting, _Waiting | None]:
        """Return the first rows, and what is left if anything is."""
        order = torch.arange(len(self.sources))
        parts = [
            dataclasses.replace(self, sources=self.sources[some], rows=self.rows.select(some))
            for some in (order[:num_rows], order[num_rows:])
        ]
        return parts[0], parts[1] if len(parts[1].sources) else None

    def compact(self) -> _Waiting:
        """Return the rows with a cache of their own queries alone."""
        owners, sources = torch.unique(self.sources, return_inverse=True)
        if len(owners) == len(self.mask):
            return self
        owners = owners.to(self.mask.device)
        self.cache.batch_select_indices(owners)
        return _Waiting(self.cache, self.mask[owners], sources, self.rows)


class DecodeBatch:
    """One call's rows: those that wait, those that are decoded, and what became of the rest.

    Args:
        encoder: The model.
        num_rows: Queries times samples.
        sampling: How tokens are drawn.
        max_rationale_tokens: Longest thought.
        cache: Of the rows that are decoded; what it holds is let go.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_rows: int,
        sampling: Sampling,
        max_rationale_tokens: int,
        cache: DecodeCache,
    ) -> None:
        self.encoder, self.sampling, self.cache = encoder, sampling, cache
        self.limit, self.num_slots = max_rationale_tokens, min(cache.num_slots, num_rows)
        cache.clear()
        self.active: _Rows | None = None
        self.waiting: _Waiting | None = None
        self.done: list[tuple[Tensor, Tensor]] = []
        self.direct: list[Tensor] = []
        self.features: list[GateFeatures] = []
        self.thinks: list[Tensor] = []
        self.rationales: list[list[int]] = [[] for _ in range(num_rows)]
        self.is_forced = torch.zeros(num_rows, dtype=torch.bool)

    def start(self, part: Prefill, first: int) -> None:
        """Take in a part, whose first query is `first`: what need not be decoded is done."""
        emb, samples = self.encoder.emb_token_id, self.sampling.num_samples
        copies = torch.arange(len(part.thinks), device=part.thinks.device)
        copies = copies.repeat_interleave(samples)
        places = torch.arange(len(copies), device=copies.device) + first * samples
        states, thinks = part.states[copies].float(), part.thinks[copies]
        self.direct.append(states.cpu())
        self.thinks.append(thinks.cpu())
        values = vars(part.features).items()
        self.features.append(GateFeatures(**{name: v[copies].cpu() for name, v in values}))
        if self.encoder.read_offset == -1:
            self.done.append((places[~thinks].cpu(), states[~thinks].cpu()))
            going = thinks.nonzero().flatten()
        else:  # the embedding token has to be read by all
            going = torch.arange(len(copies), device=copies.device)
        if not len(going):
            return
        uniforms = self.sampling.draw_uniforms(
            part.features.query_ids, self.limit + 1, part.logits.device
        )[going]
        # a thinking row writes at least one token, also where the model would have answered at once
        logits = part.logits[copies[going]].index_fill(
            -1, torch.tensor([emb], device=copies.device), -torch.inf
        )
        tokens = torch.where(thinks[going], self.sampling.choose(logits, uniforms[:, 0]), emb)
        written = thinks[going].long()
        history = tokens.new_zeros(len(going), self.limit)
        history[:, 0] = tokens * written
        rows = _Rows(
            places[going],
            tokens[:, None],
            part.positions[copies[going]],
            written,
            history,
            uniforms,
        )
        self.waiting = _Waiting(part.cache, part.mask, copies[going].cpu(), rows)

    def decode(self, is_last: bool) -> None:
        """Write tokens while rows wait for a slot, and in the end until all have their embedding.

        Rows that leave slots free are better joined by those of the next part.
        """
        self._fill()
        if self.waiting is not None:
            self.waiting = self.waiting.compact()
        while self.active is not None and (is_last or self.waiting is not None):
            self._step(self.active)
            self._fill()

    def _fill(self) -> None:
        """Let waiting rows take the free slots, when these are worth it."""
        if self.waiting is None:
            return
        num_waiting = len(self.waiting.sources)
        num_free = self.num_slots - self.cache.num_active
        num_worth = max(1, int(self.num_slots * _REFILL_SHARE))
        if self.active is not None and num_free < min(num_worth, num_waiting):
            return
        entering, self.waiting = self.waiting.split(num_free)
        self.cache.add_rows(entering.cache, entering.sources, entering.mask)
        self.active = entering.rows if self.active is None else self.active.join(entering.rows)

    def _step(self, rows: _Rows) -> None:
        """Read the next token of every active row, and let go the rows that are done."""
        emb = self.encoder.emb_token_id
        nothing = torch.zeros_like(rows.tokens)
        inputs = EncoderInput(rows.tokens, self.cache.attention_mask, nothing, nothing)
        states = self.encoder.run_backbone(inputs, rows.positions, self.cache)
        states = states[:, -1]
        self.cache.advance()
        uniforms = rows.uniforms.gather(1, rows.written[:, None])[:, 0]
        tokens = self.sampling.choose(self.encoder.predict_tokens(states), uniforms)
        is_read = rows.tokens[:, 0] == emb
        is_forced = (tokens != emb) & (rows.written >= self.limit) & ~is_read
        tokens = torch.where(is_forced, emb, tokens)
        is_closed = tokens == emb
        is_done = is_closed if self.encoder.read_offset == -1 else is_read
        grows = ~is_closed & ~is_read
        slot = rows.written.clamp(max=self.limit - 1)[:, None]
        before = rows.history.gather(1, slot)
        rows.history.scatter_(1, slot, torch.where(grows[:, None], tokens[:, None], before))
        rows.written = rows.written + grows.long()
        rows.tokens, rows.positions = tokens[:, None], rows.positions + 1
        goes, forced = torch.stack([is_done, is_forced]).cpu()
        if forced.any():
            self.is_forced[rows.places.cpu()[forced]] = True
        if goes.any():
            self._let_go(rows, goes, states)

    def _let_go(self, rows: _Rows, goes: Tensor, states: Tensor) -> None:
        gone = goes.nonzero().flatten()
        leaving = rows.select(gone)
        places = leaving.places.cpu()
        self.done.append((places, states[gone.to(states.device)].float().cpu()))
        written = zip(
            places.tolist(), leaving.history.tolist(), leaving.written.tolist(), strict=True
        )
        for place, tokens, length in written:
            self.rationales[place] = tokens[:length]
        order = self.cache.drop_rows(goes)
        self.active = rows.select(order) if len(order) else None

    def finish(self, hidden_size: int) -> EngineOutput:
        """Return all rows, once every one is done."""
        embeddings = torch.empty(len(self.rationales), hidden_size)
        for places, states in self.done:
            embeddings[places] = states
        nothing = torch.empty(0)
        return EngineOutput(
            embeddings=embeddings,
            direct_embeddings=torch.cat([torch.empty(0, hidden_size), *self.direct]),
            thinks=torch.cat([nothing.bool(), *self.thinks]),
            think_probability=torch.cat([nothing, *(f.think_probability for f in self.features)]),
            emb_is_first=torch.cat([nothing.bool(), *(f.emb_is_first for f in self.features)]),
            rationale_token_ids=self.rationales,
            is_forced=self.is_forced,
        )
