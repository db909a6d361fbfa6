"""Calibration of a router: what its probabilities are worth, and which of them meet a budget.

Shape: N queries of the val split.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tracelib.metrics.calibration_map import (
    CLOSEST,
    check_pairs,
    fit_isotonic,
    fit_temperature,
    place_temperature_knots,
)

Method = Literal["temperature", "isotonic"]
Labels = Literal["annotated", "utility"]
ABOVE_ALL = 2.0
"""A threshold that no probability reaches."""
_NUM_STEPS = 1000


@dataclass(frozen=True)
class RouterCalibration:
    """What a router's raw probabilities were on the val split, and what they are worth.

    Args:
        method: How the map was fitted.
        raw: Raw probabilities, strictly rising from 0 to 1: the map's knots.
        calibrated: What each becomes, rising, in 0 .. 1.
        quantiles: 1001 raw probabilities of val queries, from the lowest to the highest in equal
            steps: a share of 1 - i / 1000 is at or above number i.
        direct_seconds: Time of embedding one query without thought; None when not measured.
        thought_seconds: The same with thought.
        labels: What the map was fitted to.

    Raises:
        ValueError: A value is out of range or order.
    """

    method: Method
    raw: tuple[float, ...]
    calibrated: tuple[float, ...]
    quantiles: tuple[float, ...]
    direct_seconds: float | None
    thought_seconds: float | None
    labels: Labels

    def __post_init__(self) -> None:
        for name, allowed in (("method", get_args(Method)), ("labels", get_args(Labels))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, allowed {', '.join(allowed)}")
        for name in ("raw", "calibrated", "quantiles"):
            _check_rising(name, getattr(self, name), is_strict=name == "raw")
        if len(self.raw) != len(self.calibrated) or (self.raw[0], self.raw[-1]) != (0, 1):
            raise ValueError(
                f"raw has {len(self.raw)} knots from {self.raw[0]} to {self.raw[-1]}; expected "
                f"{len(self.calibrated)} from 0 to 1, one per calibrated"
            )
        if len(self.quantiles) != _NUM_STEPS + 1:
            raise ValueError(f"quantiles has {len(self.quantiles)} values, not {_NUM_STEPS + 1}")
        for name in ("direct_seconds", "thought_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not (_is_number(seconds) and 0 < seconds < math.inf):
                raise ValueError(f"{name} is {seconds!r}, must be above 0, or null")

    def calibrate(self, probability: Tensor) -> Tensor:
        """Return calibrated probabilities of raw ones.

        Args:
            probability: `[N]` in 0 .. 1; NaN stays NaN.

        Returns:
            `[N]` float64.

        Raises:
            ValueError: A probability is out of range.
        """
        bad = (probability < 0) | (probability > 1)
        if bool(bad.any()):
            raise ValueError(f"a probability is {probability[bad][0].item()}, allowed 0 .. 1")
        value = probability.double()
        raw, calibrated = (value.new_tensor(knots) for knots in (self.raw, self.calibrated))
        right = torch.searchsorted(raw, value, right=True).clamp(1, len(raw) - 1)
        share = (value - raw[right - 1]) / (raw[right] - raw[right - 1])
        return torch.lerp(calibrated[right - 1], calibrated[right], share)

    def find_raw(self, calibrated: float) -> float:
        """Return the smallest raw probability worth `calibrated`; 2.0 where none is."""
        levels = self.calibrated
        place = next((i for i, level in enumerate(levels) if level >= calibrated), None)
        if place is None:
            return ABOVE_ALL
        if place == 0:
            return self.raw[place]
        share = (calibrated - levels[place - 1]) / (levels[place] - levels[place - 1])
        low, high = self.raw[place - 1 : place + 1]
        return min(low + share * (high - low), high)

    def find_threshold(self, budget: float) -> float:
        """Return the raw probability from which on queries think so that a given share does.

        Of the val queries a share within 0.001 of the budget is at or above it. Queries of one
        probability think all or not at all: then it is the nearest share there is, of two equally
        near ones the smaller.

        Args:
            budget: Share of queries that think, 0 .. 1. 0 gives 2.0, above everything; 1 gives 0.

        Raises:
            ValueError: `budget` is out of range.
        """
        if not 0 <= budget <= 1:
            raise ValueError(f"budget is {budget}, allowed 0 .. 1")
        shares = {ABOVE_ALL: 0.0}
        for step in range(_NUM_STEPS, -1, -1):
            shares[self.quantiles[step]] = (_NUM_STEPS - step) / _NUM_STEPS
        found = min(shares, key=lambda value: round(abs(shares[value] - budget), 9))
        return 0.0 if shares[found] == 1 else found

    def find_budget(self, queries_per_second: float) -> float:
        """Return the share of queries that may think at a given speed.

        Args:
            queries_per_second: What the device that was measured is to serve; between its speed
                when all queries think and its speed when none does.

        Raises:
            ValueError: No times were measured, thought takes no longer than none, or the speed is
                out of reach.
        """
        direct, thought = self.direct_seconds, self.thought_seconds
        if direct is None or thought is None:
            raise ValueError(
                f"direct_seconds is {direct} and thought_seconds {thought}: no speed was measured; "
                "calibrate again where both can be, or choose a budget"
            )
        if thought <= direct:
            raise ValueError(
                f"thought_seconds {thought} is not above direct_seconds {direct}: every budget "
                "has the same speed; choose a budget"
            )
        low, high = 1 / thought, 1 / direct
        if not low * (1 - 1e-9) <= queries_per_second <= high * (1 + 1e-9):
            raise ValueError(
                f"queries_per_second is {queries_per_second}, reachable is {low:.6g} (all queries "
                f"think) .. {high:.6g} (none does)"
            )
        return min(max((1 / queries_per_second - direct) / (thought - direct), 0.0), 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RouterCalibration:
        """Return what `to_json` wrote; further keys, as of provenance, are passed over.

        Raises:
            ValueError: A field is missing, or its value out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"{', '.join(missing)} missing; it has {sorted(values)}")
        found: dict[str, Any] = {name: values[name] for name in names}
        for name in ("raw", "calibrated", "quantiles"):
            if not isinstance(found[name], list | tuple):
                raise ValueError(f"{name} is {found[name]!r}, not a list")
            found[name] = tuple(found[name])
        return cls(**found)


def read_calibration(path: Path) -> RouterCalibration:
    """Read the calibration of a run.

    Raises:
        ValueError: The file is missing or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        return RouterCalibration.from_json(values)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is nothing that `calibrate` wrote: {error}") from error


def build_calibration(
    method: Method,
    probabilities: Tensor,
    labels: Tensor,
    direct_seconds: float | None,
    thought_seconds: float | None,
    labels_name: Labels,
) -> RouterCalibration:
    """Fit a calibration to the val split.

    Args:
        method: `temperature` keeps the order of queries and needs few labels; `isotonic` fits any
            rising map, and makes ties.
        probabilities: `[N]` the router's, in 0 .. 1, of all queries.
        labels: `[N]` how much each query needs thought, in 0 .. 1; -1 where nobody said: such
            queries count for the budget only.
        direct_seconds: Time of embedding one query without thought; None when not measured.
        thought_seconds: The same with thought.
        labels_name: What the labels are.

    Raises:
        ValueError: No query has a label, or a value is out of range.
    """
    check_pairs("probability", probabilities, torch.zeros_like(labels), 0, 1)
    known = labels != -1
    if not known.any():
        raise ValueError(f"none of {len(labels)} queries has a label; at least one is needed")
    found, target = probabilities.double()[known], labels[known]
    if method == "isotonic":
        raw, calibrated = fit_isotonic(found, target)
    else:
        temperature = fit_temperature(torch.logit(found, eps=CLOSEST), target)
        raw, calibrated = place_temperature_knots(temperature)
    ordered = probabilities.double().sort().values.tolist()
    places = (i * len(ordered) // _NUM_STEPS for i in range(_NUM_STEPS))
    quantiles = (*(ordered[place] for place in places), ordered[-1])
    return RouterCalibration(
        method, raw, calibrated, quantiles, direct_seconds, thought_seconds, labels_name
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_rising(name: str, values: tuple[float, ...], is_strict: bool) -> None:
    if len(values) < 2:
        raise ValueError(f"{name} has {len(values)} values; at least 2 are needed")
    for place, value in enumerate(values):
        if not (_is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name} {place} is {value!r}, allowed 0 .. 1")
        before = values[place - 1] if place else -1
        if value < before or (is_strict and value == before):
            raise ValueError(f"{name} {place} is {value} after {before}; it must rise")
