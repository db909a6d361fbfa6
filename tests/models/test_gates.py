import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import auto_cli

from tracelib.data.records import MAX_QUERY_NUMBER, encode_id
from tracelib.metrics.calibration import build_calibration
from tracelib.models.gates import (
    AlwaysGate,
    FirstTokenGate,
    Gate,
    GateFeatures,
    HeadGate,
    NeverGate,
    OracleGate,
    RandomGate,
    TaskPriorGate,
)
from tracelib.retrieval.per_query import PerQuery, write_per_query

FEATURES = GateFeatures(
    emb_is_first=torch.tensor([True, False, False]),
    think_probability=torch.tensor([0.2, 0.5, 0.9]),
    task_prior=torch.tensor([0.5, 0.49, 1.0]),
    query_ids=torch.tensor([1, 500_001, 7]),
)


def make_features(think_probability=None, query_ids=None):
    size = len(think_probability if query_ids is None else query_ids)
    return GateFeatures(
        emb_is_first=torch.zeros(size, dtype=torch.bool),
        think_probability=torch.zeros(size) if think_probability is None else think_probability,
        task_prior=torch.zeros(size),
        query_ids=torch.zeros(size, dtype=torch.long) if query_ids is None else query_ids,
    )


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (NeverGate(), [False, False, False]),
        (AlwaysGate(), [True, True, True]),
        (FirstTokenGate(), [False, True, True]),
        (HeadGate(), [False, True, True]),
        (HeadGate(0.51), [False, False, True]),
        (HeadGate(0.0), [True, True, True]),
        (HeadGate(1.1), [False, False, False]),
        (TaskPriorGate(), [True, False, True]),
        (TaskPriorGate(0.6), [False, False, True]),
        (RandomGate(0.0), [False, False, False]),
        (RandomGate(1.0), [True, True, True]),
    ],
)
def test_gates_decide_by_their_own_feature(gate, expected):
    found = gate.decide(FEATURES)
    assert found.tolist() == expected
    assert found.dtype == torch.bool


def test_gate_names():
    gates = (NeverGate, AlwaysGate, FirstTokenGate, HeadGate, RandomGate, TaskPriorGate, OracleGate)
    names = "never always first_token head random task_prior oracle"
    assert " ".join(gate.name for gate in gates) == names


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (NeverGate(), {"name": "never"}),
        (HeadGate(), {"name": "head", "threshold": 0.5}),
        (TaskPriorGate(), {"name": "task_prior", "threshold": 0.5}),
        (RandomGate(0.3), {"name": "random", "rate": 0.3, "seed": 0}),
    ],
)
def test_a_description_is_what_decides(gate, expected):
    assert gate.describe() == expected == json.loads(json.dumps(gate.describe()))


@pytest.fixture
def val(tmp_path):
    """Path of a calibration, probabilities and labels of its queries."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2000, generator=generator)
    labels = (torch.rand(2000, generator=generator) < torch.sigmoid(logits / 2)).long()
    probabilities = torch.sigmoid(logits)
    fitted = build_calibration("temperature", probabilities, labels, 0.01, 0.05, "annotated")
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**fitted.to_json(), "weights": "provenance"}))
    return path, probabilities, fitted


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.3, 0.5, 0.999, 1.0])
def test_a_budget_is_kept_on_the_calibrated_queries(val, budget):
    path, probabilities, _ = val
    thinks = HeadGate(budget=budget, calibration=path).decide(make_features(probabilities))
    assert thinks.double().mean().item() == pytest.approx(budget, abs=1e-3)


def test_a_speed_is_kept_on_the_calibrated_queries(val):
    path, probabilities, _ = val
    gate = HeadGate(queries_per_second=40.0, calibration=path)
    rate = gate.decide(make_features(probabilities)).double().mean().item()
    assert 1 / ((1 - rate) * 0.01 + rate * 0.05) == pytest.approx(40, abs=0.1)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.95])
def test_a_threshold_is_on_the_calibrated_probability(val, threshold):
    path, probabilities, fitted = val
    thinks = HeadGate(threshold, calibration=path).decide(make_features(probabilities))
    assert torch.equal(thinks, fitted.calibrate(probabilities) >= threshold)
    raw = HeadGate(threshold).decide(make_features(probabilities))
    assert torch.equal(raw, thinks) == (threshold == 0.5)  # a temperature leaves the half alone


def test_a_head_is_described_by_its_threshold_not_by_its_file(val, tmp_path):
    path = val[0]
    copied = tmp_path / "elsewhere.json"
    copied.write_text(path.read_text())
    gates = [HeadGate(budget=0.3, calibration=p) for p in (path, copied)]
    assert gates[0].describe() == gates[1].describe() == HeadGate(gates[0].threshold).describe()
    assert gates[0].describe() != HeadGate(budget=0.4, calibration=path).describe()
    assert set(gates[0].describe()) == {"name", "threshold"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.5, "budget": 0.3}, r"'threshold': 0\.5, 'budget': 0\.3\}; choose one"),
        ({"budget": 0.3}, r"budget 0\.3 of HeadGate needs a calibration"),
        ({"queries_per_second": 9.0}, r"queries_per_second 9\.0 of HeadGate needs a calibration"),
        ({"threshold": float("nan")}, "threshold of HeadGate is nan"),
        ({"threshold": -0.1}, r"threshold of HeadGate is -0\.1"),
        ({"calibration": True, "budget": 1.5}, r"calibration\.json: budget is 1\.5, allowed 0 "),
        (
            {"calibration": True, "queries_per_second": 101.0},
            r"queries_per_second is 101\.0, reachable is 20 .* \.\. 100 ",
        ),
        ({"calibration": True, "queries_per_second": 19.0}, "reachable is 20 "),
        ({"calibration": Path("none.json")}, r"none\.json is nothing that `calibrate` wrote"),
    ],
)
def test_a_head_that_cannot_be_is_refused(val, arguments, message):
    if arguments.get("calibration") is True:
        arguments = {**arguments, "calibration": val[0]}
    with pytest.raises(ValueError, match=message):
        HeadGate(**arguments)


def test_chance_holds_its_rate_on_ids_in_a_row():
    ids = torch.cat([d * MAX_QUERY_NUMBER + torch.arange(1, 5001) for d in range(4)])
    for rate in (0.1, 0.5, 0.9):
        shares = [
            RandomGate(rate, seed).decide(make_features(query_ids=ids)).double().mean().item()
            for seed in range(20)
        ]
        deviation = (rate * (1 - rate) / len(ids)) ** 0.5
        assert max(abs(share - rate) for share in shares) < 4 * deviation
        assert np.std(shares) == pytest.approx(deviation, rel=0.5)


def test_chance_of_neighbouring_seeds_and_ids_is_independent():
    ids = torch.arange(1, 20_001)
    choices = torch.stack(
        [RandomGate(0.5, seed).decide(make_features(query_ids=ids)) for seed in range(-3, 8)]
    ).double()
    correlations = torch.corrcoef(choices) - torch.eye(len(choices))
    assert correlations.abs().max() < 4 / 20_000**0.5
    for lag in (1, 2, 3, 8):
        pair = torch.corrcoef(torch.stack([choices[0, lag:], choices[0, :-lag]]))
        assert abs(pair[0, 1]) < 4 / 20_000**0.5
    # the negative control: a seed is no mere shift of the ids
    assert not any(torch.equal(choices[3, lag:], choices[4, : -lag or None]) for lag in range(3))


def test_chance_does_not_depend_on_batch_mates_or_order():
    ids = torch.tensor([7, 500_001, 3, 12, 9, 49_999_999_999])
    gate = RandomGate(0.5, seed=1)
    whole = gate.decide(make_features(query_ids=ids))
    assert gate.decide(make_features(query_ids=ids.flip(0))).tolist() == whole.flip(0).tolist()
    alone = [gate.decide(make_features(query_ids=i[None])).item() for i in ids]
    assert alone == whole.tolist()
    assert set(alone) == {True, False}


def split_mix(state):
    """One step of SplitMix64, by whole numbers of any size."""
    word = 2**64 - 1
    mixed = (state + 0x9E3779B97F4A7C15) & word
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & word
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & word
    return mixed ^ (mixed >> 31)


def test_chance_is_pinned():
    """Stored embeddings are kept by rate and seed: the choice may never change."""
    assert split_mix(1234567) == 6457827717110365317  # published with the generator
    ids = list(range(1, 2001))
    expected = [split_mix(split_mix(i) ^ split_mix(5)) / 2**64 < 0.3 for i in ids]
    found = RandomGate(0.3, seed=5).decide(make_features(query_ids=torch.tensor(ids)))
    assert found.tolist() == expected


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"rate of RandomGate is 1\.5, allowed 0 \.\. 1"):
        RandomGate(1.5)


NAMES = ["10:9", "2:3", "10:1", "2:1"]
RANKS = {
    "never": {"local": [2, 0, 1, 0], "union": [2, 5, 1, 0]},
    "always": {"local": [1, 7, 1, 0], "union": [2, 6, 1, 9]},
}


def write_ranks(path, gate, names=NAMES, **changes):
    size = len(names)
    queries = PerQuery(
        query_ids=names,
        columns=["a_task0"] * size,
        prompt_numbers=torch.zeros(size, dtype=torch.int8),
        difficulty=torch.zeros(size, dtype=torch.int8),
        num_positives=torch.ones(size, dtype=torch.int32),
        first_ranks={p: torch.tensor(r).int()[:size] for p, r in RANKS[gate].items()},
        thinks=torch.full((size,), gate == "always"),
        num_tokens=torch.ones(size, dtype=torch.int32),
        think_probability=torch.full((size,), 0.5),
        emb_is_first=torch.zeros(size, dtype=torch.bool),
    )
    write_per_query(path / gate / "per_query.parquet", dataclasses.replace(queries, **changes))
    return path / gate / "per_query.parquet"


@pytest.fixture
def ranks(tmp_path):
    return [write_ranks(tmp_path, gate) for gate in ("never", "always")]


@pytest.mark.parametrize(
    ("pool", "expected"),
    [("local", [True, True, False, False]), ("union", [False, False, False, True])],
)
def test_the_oracle_thinks_where_thought_ranks_better(ranks, pool, expected):
    gate = OracleGate(*ranks, pool=pool)
    ids = torch.tensor([encode_id(name, MAX_QUERY_NUMBER) for name in NAMES])
    assert gate.decide(make_features(query_ids=ids)).tolist() == expected
    assert gate.decide(make_features(query_ids=ids[[3, 1]])).tolist() == [expected[3], expected[1]]


def test_an_oracle_is_described_by_its_decisions(ranks, tmp_path):
    (tmp_path / "moved").mkdir()
    moved = [path.rename(tmp_path / "moved" / path.parent.name) for path in ranks]
    for path in moved:
        ranks[moved.index(path)].write_bytes(path.read_bytes())
    here, there = OracleGate(*ranks).describe(), OracleGate(*moved).describe()
    assert here == there == json.loads(json.dumps(here))
    assert here != OracleGate(*ranks, pool="union").describe()
    order = [2, 0, 3, 1]
    shuffled = {
        gate: write_ranks(
            tmp_path / "shuffled",
            gate,
            [NAMES[i] for i in order],
            first_ranks={p: torch.tensor(r).int()[order] for p, r in RANKS[gate].items()},
        )
        for gate in RANKS
    }
    assert OracleGate(**shuffled).describe() == here


@pytest.mark.parametrize("number", [1, 10 * MAX_QUERY_NUMBER + 10, 99 * MAX_QUERY_NUMBER])
def test_a_query_the_oracle_does_not_know_is_refused(ranks, number):
    name = f"{number // MAX_QUERY_NUMBER}:{number % MAX_QUERY_NUMBER}"
    with pytest.raises(ValueError, match=rf"query {name} is not in .*never.* and .*always"):
        OracleGate(*ranks).decide(make_features(query_ids=torch.tensor([5_000_009, number])))


def test_an_oracle_of_odd_files_is_refused(ranks, tmp_path):
    never, always = ranks
    with pytest.raises(ValueError, match=r"4 of 4 queries do think; expected .* of gate never"):
        OracleGate(always, never)
    with pytest.raises(ValueError, match=r"of different queries: 2:1 is in one of them only"):
        OracleGate(never, write_ranks(tmp_path / "short", "always", NAMES[:3]))
    twice = write_ranks(tmp_path / "twice", "always", ["10:9", "2:3", "10:9", "2:1"])
    with pytest.raises(ValueError, match=r"query 10:9 has 2 rows; .*data\.prompt_policy"):
        OracleGate(never, twice)
    with pytest.raises(ValueError, match="no Parquet file"):
        OracleGate(never, tmp_path / "none.parquet")


def get_gate(gate: Gate | None = None) -> Gate | None:
    return gate


def test_the_command_line_builds_every_gate(val, ranks):
    lines = {
        "never": [],
        "always": [],
        "first_token": [],
        "head": ["--gate.budget=0.3", f"--gate.calibration={val[0]}"],
        "random": ["--gate.rate=0.3", "--gate.seed=5"],
        "task_prior": ["--gate.threshold=0.4"],
        "oracle": [f"--gate.never={ranks[0]}", f"--gate.always={ranks[1]}", "--gate.pool=union"],
    }
    for name, options in lines.items():
        kind = "".join(part.title() for part in name.split("_")) + "Gate"
        arguments = [f"--gate=tracelib.models.gates.{kind}", *options]
        gate = auto_cli(get_gate, args=arguments)
        assert gate.name == name
    assert gate.describe() == OracleGate(*ranks, pool="union").describe()
