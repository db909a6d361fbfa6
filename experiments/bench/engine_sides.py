"""The engine and the loops it is measured against, over the same sets of queries.

Shapes: T tokens, D dimensions.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from decode_loops import DecodeLoop
from query_sources import Source, cast_weights, join_prompts
from torch.nn import functional

from tracelib.models.decoding import EngineOutput
from tracelib.models.encoder import Encoder
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate, FirstTokenGate, Gate, NeverGate
from tracelib.types import EncoderInput

_MAX_DIFFERENCE = 1e-4  # in float32
_LEAST_EQUAL = 0.98  # in other types
_MOST_SPLIT = 16_384  # queries looked at to find those that think
_OTHER_MIXES = (10, 50)  # percent that think in the mixes timed beside the natural one
_ENGINE_TURNS = 3  # per run: its times are short beside the loops'

Sides = dict[str, tuple[Callable[[], object], int]]
"""What is timed, and the queries it embeds, by name."""


@dataclass(frozen=True)
class TimedQuery:
    """A query of one of the sets.

    Args:
        place: Its place in the source.
        prompt: Its prompt, `[1, T]`.
        thought: What it writes; empty when it answers at once.
    """

    place: int
    prompt: EncoderInput
    thought: tuple[int, ...] = ()


class EngineSides:
    """The sets `hard`, `easy` and `mix`, and everything that embeds them.

    Args:
        source: Model and queries.
        batch_size: Prompts read at once.
        decode_batch_size: Most queries that the engine decodes at the same time.
        num_queries: Queries of each set; they repeat where the source has fewer.
        num_looped: Queries of each set for the loop that takes them one by one.

    Raises:
        ValueError: All queries think, or none does.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        decode_batch_size: int,
        num_queries: int,
        num_looped: int,
    ) -> None:
        self.source, self.batch_size = source, batch_size
        self.decode_batch_size = decode_batch_size
        self.engine = self._build_engine(source.encoder)
        self.loop = DecodeLoop(source.encoder, source.max_rationale_tokens, source.pad_token_id)
        places = np.random.default_rng(0).permutation(source.num_queries)[:_MOST_SPLIT].tolist()
        prompts = source.read_prompts(places)
        queries = sort_by_length([TimedQuery(*pair) for pair in zip(places, prompts, strict=True)])
        output = self.embed(self.engine, self.join(queries), FirstTokenGate())
        self.think_share = output.thinks.float().mean().item()
        if self.think_share in (0, 1):
            raise ValueError(
                f"{self.think_share:.0%} of {len(places)} queries think: take a run whose model "
                "has learnt which should (--run)"
            )
        thoughts = zip(queries, output.rationale_token_ids, strict=True)
        queries = [dataclasses.replace(query, thought=tuple(ids)) for query, ids in thoughts]
        self.forced_share = output.is_forced.sum().item() / output.thinks.sum().item()
        self.hard = spread([query for query in queries if query.thought], num_queries)
        self.easy = spread([query for query in queries if not query.thought], num_queries)
        self.mix = self._mix(queries, num_queries, self.think_share)
        self.mixes = {"natural_mix": self.mix} | {
            f"mix_{percent}": self._mix(queries, num_queries, percent / 100)
            for percent in _OTHER_MIXES
        }
        self.looped = {
            "hard": spread(self.hard, num_looped),
            "mix": self._mix(self.mix, num_looped, self.think_share),
        }

    def _mix(
        self, queries: Sequence[TimedQuery], num_queries: int, share: float
    ) -> list[TimedQuery]:
        """Return some queries, of which that share thinks."""
        num_hard = max(1, round(share * num_queries))
        hard = spread([query for query in queries if query.thought], num_hard)
        easy = [query for query in queries if not query.thought]
        return sort_by_length([*hard, *spread(easy, num_queries - num_hard)])

    def _build_engine(self, encoder: Encoder) -> ReasoningEngine:
        router, limit = self.source.router, self.source.max_rationale_tokens
        return ReasoningEngine(encoder, router, limit, self.decode_batch_size)

    def join(self, queries: Sequence[TimedQuery]) -> list[EncoderInput]:
        """Return padded batches, in the queries' order."""
        prompts, size = [query.prompt for query in queries], self.batch_size
        return [
            join_prompts(prompts[start : start + size], self.source.pad_token_id)
            for start in range(0, len(prompts), size)
        ]

    def embed(
        self, engine: ReasoningEngine, parts: Sequence[EncoderInput], gate: Gate
    ) -> EngineOutput:
        """Embed batches of prompts; the gates used here need neither task prior nor ids."""
        num_queries = sum(len(part.input_ids) for part in parts)
        return engine.embed_queries(
            parts, gate, torch.zeros(num_queries), torch.arange(num_queries)
        )

    def describe_thoughts(self) -> dict[str, float]:
        """Return what the thoughts of `hard` are like."""
        lengths = [len(query.thought) for query in self.hard]
        return {
            "think_share": self.think_share,
            "tokens_per_thinking_query": statistics.mean(lengths),
            "shortest_thought": min(lengths),
            "longest_thought": max(lengths),
            "forced_share": self.forced_share,
        }

    def check_outputs(self) -> dict[str, float]:
        """Compare engine and loops on both sets.

        Returns:
            `equal_thoughts`, the share over all comparisons, and `worst_difference` of embeddings
            after equal thoughts.

        Raises:
            ValueError: In float32, thoughts differ or embeddings are further apart than 1e-4; in
                other types, more than 2 % of the thoughts differ.
        """
        num_equal, differences = [], []
        for name, queries, gate in (
            ("hard", self.hard, AlwaysGate()),
            ("mix", self.mix, FirstTokenGate()),
        ):
            batches = self.join(queries)
            ours = self.embed(self.engine, batches, gate)
            found = dict(zip((q.place for q in queries), range(len(queries)), strict=True))
            loops = (self.loop.embed_batch, self.loop.embed_compacted)
            pairs = [embed(batch) for embed in loops for batch in batches]
            theirs = [pair for ids, states in pairs for pair in zip(ids, states, strict=True)]
            rows = list(range(len(queries))) * len(loops)
            looped = self.looped[name]
            theirs += [self.loop.embed_alone(query.prompt) for query in looped]
            rows += [found[query.place] for query in looped]
            for row, (thought, state) in zip(rows, theirs, strict=True):
                num_equal.append(thought == ours.rationale_token_ids[row])
                if num_equal[-1]:
                    differences.append((ours.embeddings[row] - state).abs().max().item())
        values = {
            "equal_thoughts": statistics.mean(map(float, num_equal)),
            "worst_difference": max(differences, default=0.0),
        }
        is_exact = self.source.encoder.dtype == torch.float32
        if values["equal_thoughts"] < (1 if is_exact else _LEAST_EQUAL) or (
            is_exact and values["worst_difference"] > _MAX_DIFFERENCE
        ):
            raise ValueError(f"engine and loops disagree, so times mean nothing: {values}")
        return values

    def compare_bfloat16(self) -> dict[str, float]:
        """Return how far bfloat16 weights move `mix`; nothing where the weights are no float32."""
        if self.source.encoder.dtype != torch.float32:
            return {}
        batches = self.join(self.mix)
        copied = copy.deepcopy(self.source.encoder)
        cast_weights(copied, "bfloat16")
        outputs = [
            self.embed(engine, batches, FirstTokenGate())
            for engine in (self.engine, self._build_engine(copied))
        ]
        ours, drifted = (output.rationale_token_ids for output in outputs)
        cosines = functional.cosine_similarity(outputs[0].embeddings, outputs[1].embeddings)
        equal = torch.tensor([a == b for a, b in zip(ours, drifted, strict=True)])
        return {
            "bfloat16_equal_thoughts": equal.float().mean().item(),
            "bfloat16_mean_cosine": cosines.mean().item(),
            "bfloat16_worst_cosine": cosines.min().item(),
            "bfloat16_worst_cosine_of_equal": cosines[equal].min().item() if equal.any() else 0.0,
        }

    def time_sides(self, num_runs: int) -> list[dict[str, float]]:
        """Return queries per second of every side in each run.

        A run is short, for a machine's speed may change by the minute. Our own sides, which are
        short beside the loops, take several turns in it, each in another order and with some of the
        loops among them; medians count.
        """
        hard, easy, mix = map(self.join, (self.hard, self.easy, self.mix))
        engine, loop = self.engine, self.loop
        ours: Sides = {
            "think_all": (lambda: self.embed(engine, hard, AlwaysGate()), len(self.hard)),
            "easy": (lambda: self.embed(engine, easy, FirstTokenGate()), len(self.easy)),
            "direct": (lambda: self.embed(engine, easy, NeverGate()), len(self.easy)),
        }
        gates: dict[str, Gate] = {
            "": FirstTokenGate(),
            "_thinking": AlwaysGate(),
            "_direct": NeverGate(),
        }
        for name, queries in self.mixes.items():
            halves = [[q for q in queries if bool(q.thought) == thinks] for thinks in (True, False)]
            for chosen, (suffix, gate) in zip([queries, *halves], gates.items(), strict=True):
                parts = self.join(chosen)
                ours[name + suffix] = (
                    lambda parts=parts, gate=gate: self.embed(engine, parts, gate),  # type: ignore[misc]
                    len(chosen),
                )
        theirs: Sides = {
            "generate_think_all": (lambda: [loop.embed_batch(p) for p in hard], len(self.hard)),
            "generate_natural_mix": (lambda: [loop.embed_batch(p) for p in mix], len(self.mix)),
            "compacted_think_all": (
                lambda: [loop.embed_compacted(p) for p in hard],
                len(self.hard),
            ),
            "compacted_natural_mix": (
                lambda: [loop.embed_compacted(p) for p in mix],
                len(self.mix),
            ),
        }
        for name, queries in self.looped.items():
            side = {"hard": "loop_think_all", "mix": "loop_natural_mix"}[name]
            prompts = [query.prompt for query in queries]
            theirs[side] = (
                lambda prompts=prompts: [loop.embed_alone(prompt) for prompt in prompts],  # type: ignore[misc]
                len(prompts),
            )
        return [self._time_run(ours, theirs, number) for number in range(num_runs)]

    def _time_run(self, ours: Sides, theirs: Sides, number: int) -> dict[str, float]:
        turns: list[str] = []
        for turn in range(_ENGINE_TURNS):
            names = [*ours, *list(theirs)[turn::_ENGINE_TURNS]]
            turns += random.Random(f"{number} {turn}").sample(names, len(names))
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        sides = ours | theirs
        for name in turns:
            start = time.perf_counter()
            sides[name][0]()
            seconds[name].append(time.perf_counter() - start)
        return {name: sides[name][1] / statistics.median(seconds[name]) for name in sides}

    @property
    def mixed_shares(self) -> dict[str, float]:
        """Share of queries of each timed mix that think, by its side."""
        return {
            side: statistics.mean(float(bool(query.thought)) for query in queries)
            for side, queries in self.mixes.items()
        }


def sort_by_length(queries: Sequence[TimedQuery]) -> list[TimedQuery]:
    """Return queries by the length of their prompts."""
    return sorted(queries, key=lambda query: query.prompt.input_ids.shape[1])


def spread(queries: Sequence[TimedQuery], num_queries: int) -> list[TimedQuery]:
    """Return queries evenly spread over the lengths of thoughts, by prompt length.

    Where fewer are there than wanted, some come several times.
    """
    ordered = sorted(queries, key=lambda query: len(query.thought))
    places = ((np.arange(num_queries) + 0.5) * len(ordered) / num_queries).astype(int)
    return sort_by_length([ordered[place] for place in places])


def compare_rates(rates: dict[str, float], mixed_shares: dict[str, float]) -> dict[str, float]:
    """Return ratios of the queries per second of a run of `time_sides`.

    Args:
        rates: Queries per second by side.
        mixed_shares: Share of queries that think, by side that is a mix.

    >>> rates = {"think_all": 10.0, "direct": 40.0, "easy": 30.0, "natural_mix": 16.0}
    >>> others = [f"{loop}_think_all" for loop in ("loop", "generate", "compacted")]
    >>> others += [name.replace("think_all", "natural_mix") for name in others]
    >>> rates |= dict.fromkeys(others, 2.0)
    >>> rates |= {"natural_mix_thinking": 10.0, "natural_mix_direct": 20.0}
    >>> ratios = compare_rates(rates, {"natural_mix": 0.5})
    >>> [ratios[name] for name in ("think_all_ratio", "easy_fraction", "mix_fraction")]
    [5.0, 0.75, 1.0]
    >>> round(ratios["mix_own_fraction"], 3)
    1.2
    """
    fractions = {}
    for side, share in mixed_shares.items():
        pure = {
            "fraction": (rates["think_all"], rates["direct"]),
            "own_fraction": (rates[f"{side}_thinking"], rates[f"{side}_direct"]),
        }
        for name, (thinking, direct) in pure.items():
            label = f"{side.removeprefix('natural_')}_{name}"
            fractions[label] = rates[side] * (share / thinking + (1 - share) / direct)
    return {
        "think_all_ratio": rates["think_all"] / rates["loop_think_all"],
        "natural_mix_ratio": rates["natural_mix"] / rates["loop_natural_mix"],
        "generate_ratio": rates["natural_mix"] / rates["generate_natural_mix"],
        "think_all_generate_ratio": rates["think_all"] / rates["generate_think_all"],
        "compacted_ratio": rates["natural_mix"] / rates["compacted_natural_mix"],
        "think_all_compacted_ratio": rates["think_all"] / rates["compacted_think_all"],
        "easy_fraction": rates["easy"] / rates["direct"],
        **fractions,
    }
