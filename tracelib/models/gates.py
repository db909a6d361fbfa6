"""Gates: who decides which queries think. Shape: B queries."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracelib.metrics.calibration import RouterCalibration, read_calibration
from tracelib.retrieval.per_query import read_per_query

_MAX_QUERY_NUMBER = 500_000  # ids `D:N` as numbers are D * 500,000 + N, as M-BEIR writes them


@dataclass(frozen=True)
class GateFeatures:
    """All a gate may look at after the prefill.

    Args:
        emb_is_first: `[B]` whether the embedding token is the most likely first token.
        think_probability: `[B]` the router's probability.
        task_prior: `[B]` share of training queries of the same task that needed thought.
        query_ids: `[B]` int64, the queries' ids as numbers.
    """

    emb_is_first: Tensor
    think_probability: Tensor
    task_prior: Tensor
    query_ids: Tensor


class Gate(ABC):
    """Decides which queries think."""

    name: str

    def describe(self) -> dict[str, Any]:
        """Return, as JSON values, all that its decisions depend on beside the query."""
        return {"name": self.name, **vars(self)}

    @abstractmethod
    def decide(self, features: GateFeatures) -> Tensor:
        """Return `[B]` bool, True where the query thinks."""


class NeverGate(Gate):
    """No query thinks: direct encoding."""

    name = "never"

    def decide(self, features: GateFeatures) -> Tensor:
        """Return all False."""
        return torch.zeros_like(features.emb_is_first)


class AlwaysGate(Gate):
    """Every query thinks, also where the model would answer at once."""

    name = "always"

    def decide(self, features: GateFeatures) -> Tensor:
        """Return all True."""
        return torch.ones_like(features.emb_is_first)


class FirstTokenGate(Gate):
    """A query thinks unless the embedding token is its likeliest first token (TRACE, 3.3)."""

    name = "first_token"

    def decide(self, features: GateFeatures) -> Tensor:
        """Return where the embedding token does not come first."""
        return ~features.emb_is_first


class HeadGate(Gate):
    """A query thinks when the router's probability reaches a threshold.

    At most one of threshold, budget and queries_per_second is given; a threshold of 0.5 otherwise.

    Args:
        threshold: On the calibrated probability, without a calibration on the raw one. 0 thinks
            always, anything above 1 never.
        budget: Share of queries that are to think, 0 .. 1; needs a calibration, on whose queries
            it holds.
        queries_per_second: Speed to keep, on the device that the calibration measured.
        calibration: `calibration.json` of the run, which `calibrate` writes.

    Raises:
        ValueError: The choices exclude each other, lack a calibration or are out of reach.
    """

    name = "head"

    def __init__(
        self,
        threshold: float | None = None,
        budget: float | None = None,
        queries_per_second: float | None = None,
        calibration: Path | None = None,
    ) -> None:
        choices = (
            ("threshold", threshold),
            ("budget", budget),
            ("queries_per_second", queries_per_second),
        )
        chosen = {name: value for name, value in choices if value is not None}
        if len(chosen) > 1:
            raise ValueError(f"HeadGate was given {chosen}; choose one")
        ((choice, value),) = chosen.items() or {"threshold": 0.5}.items()
        if not 0 <= value < math.inf:
            raise ValueError(f"{choice} of HeadGate is {value}, must be finite and at least 0")
        if calibration is not None:
            value = _find_threshold(choice, value, read_calibration(calibration), calibration)
        elif choice != "threshold":
            raise ValueError(
                f"{choice} {value} of HeadGate needs a calibration: the file calibration.json that "
                "`calibrate` writes into a run"
            )
        self.threshold = value
        """The raw probability from which on queries think, whatever was chosen."""

    def decide(self, features: GateFeatures) -> Tensor:
        """Return where the probability is at least the threshold."""
        return features.think_probability >= self.threshold


def _find_threshold(choice: str, value: float, calibration: RouterCalibration, path: Path) -> float:
    """Return the raw probability at which what was chosen is met."""
    if choice == "threshold":
        return calibration.find_raw(value)
    try:
        budget = calibration.find_budget(value) if choice == "queries_per_second" else value
        return calibration.find_threshold(budget)
    except ValueError as error:
        raise ValueError(f"HeadGate, {path}: {error}") from error


class TaskPriorGate(Gate):
    """A query thinks when most training queries of its task did; it knows nothing else.

    Args:
        threshold: Least share of hard training queries in its task.
    """

    name = "task_prior"

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def decide(self, features: GateFeatures) -> Tensor:
        """Return where the task's share of hard training queries is at least the threshold."""
        return features.task_prior >= self.threshold


class RandomGate(Gate):
    """A query thinks by chance: always the same ones, whatever comes with them.

    Args:
        rate: Share of all possible queries that think, 0 .. 1.
        seed: Another seed chooses other queries.

    Raises:
        ValueError: `rate` is out of range.
    """

    name = "random"

    def __init__(self, rate: float, seed: int = 0) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate of RandomGate is {rate}, allowed 0 .. 1")
        self.rate, self.seed = rate, seed

    def decide(self, features: GateFeatures) -> Tensor:
        """Return where a number drawn from seed and query id lies below the rate."""
        ids = features.query_ids
        key = _mix(np.array([self.seed % 2**64], dtype=np.uint64))
        mixed = _mix(_mix(ids.cpu().numpy().astype(np.uint64)) ^ key)
        uniform = (mixed >> np.uint64(11)) * 2.0**-53
        return torch.from_numpy(uniform < self.rate).to(ids.device)


class OracleGate(Gate):
    """A query thinks where its thought is known to find the first positive at a better rank.

    It has seen the answers, of the very queries it decides on: no gate can do better by that rank.

    Args:
        never: `per_query.parquet` of the run without thought.
        always: `per_query.parquet` of the same run and split when all queries think.
        pool: Whose ranks count.

    Raises:
        ValueError: A file cannot be read, the two are of different queries, a query has several
            rows, or they were not written under `never` and `always`.
    """

    name = "oracle"

    def __init__(
        self, never: Path, always: Path, pool: Literal["local", "union"] = "local"
    ) -> None:
        self.files = f"{never} and {always}"
        direct_ids, direct = _read_ranks(never, pool, thinks=False)
        self.query_ids, thought = _read_ranks(always, pool, thinks=True)
        if not np.array_equal(direct_ids, self.query_ids):
            odd = int(np.setxor1d(direct_ids, self.query_ids)[0])
            raise ValueError(
                f"{self.files} are of different queries: {_decode_id(odd)} is in one of them only"
            )
        self.decisions = thought < direct

    def describe(self) -> dict[str, Any]:
        """Return a digest of the decisions."""
        digest = hashlib.sha256(self.query_ids.tobytes() + self.decisions.tobytes()).hexdigest()
        return {"name": self.name, "decisions": digest}

    def decide(self, features: GateFeatures) -> Tensor:
        """Return where the thought ranks better.

        Raises:
            ValueError: A query is in neither file.
        """
        wanted = features.query_ids.cpu().numpy()
        places = np.searchsorted(self.query_ids, wanted).clip(max=len(self.query_ids) - 1)
        is_unknown = self.query_ids[places] != wanted
        if is_unknown.any():
            raise ValueError(
                f"query {_decode_id(int(wanted[is_unknown][0]))} is not in {self.files}; the "
                "oracle gate knows the split they were evaluated on"
            )
        return torch.from_numpy(self.decisions[places]).to(features.query_ids.device)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return 64 bits that all depend on all bits of each value (the finaliser of SplitMix64)."""
    mixed: npt.NDArray[np.uint64] = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _read_ranks(
    path: Path, pool: str, thinks: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the ids in order, and the rank of each one's first positive; infinite when none."""
    found = read_per_query(path)
    if not bool((found.thinks == thinks).all()):
        expected, other = ("always", "do not") if thinks else ("never", "do")
        raise ValueError(
            f"{path}: {int((found.thinks != thinks).sum())} of {len(found.thinks)} queries {other} "
            f"think; expected the per_query.parquet of gate {expected}"
        )
    pairs = (name.split(":") for name in found.query_ids)
    ids = np.array([int(d) * _MAX_QUERY_NUMBER + int(n) for d, n in pairs], dtype=np.int64)
    unique, places, counts = np.unique(ids, return_index=True, return_counts=True)
    if not len(unique):
        raise ValueError(f"{path} has no queries; at least one is needed")
    if counts.max() > 1:
        again = _decode_id(int(unique[counts.argmax()]))
        raise ValueError(
            f"{path}: query {again} has {counts.max()} rows; the oracle gate needs one per query: "
            "evaluate with one prompt each (data.prompt_policy fixed or random)"
        )
    ranks = found.first_ranks[pool].double()
    ranks = torch.where(ranks > 0, ranks, torch.inf)
    return unique, ranks.numpy()[places]


def _decode_id(number: int) -> str:
    return f"{number // _MAX_QUERY_NUMBER}:{number % _MAX_QUERY_NUMBER}"
