from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import make_facts
from tracelib.callbacks.routing_monitor import (
    compute_precision_recall,
    judge_routing,
    summarize_routing,
)
from tracelib.callbacks.stored_evaluation import Evaluation
from tracelib.retrieval.evaluation import Thoughts, tabulate

NAN = float("nan")


def build_evaluation(thinks, difficulty, probability) -> Evaluation:
    """Queries of columns a, b, a, b, ...; the i-th wrote i tokens if it thought."""
    size = len(thinks)
    facts = make_facts(["ab"[i % 2] for i in range(size)], difficulty)
    thoughts = Thoughts(
        thinks=torch.tensor(thinks, dtype=torch.bool),
        think_probability=torch.tensor(probability),
        emb_is_first=torch.zeros(size, dtype=torch.bool),
        rationale_token_ids=[[7] * i if think else [] for i, think in enumerate(thinks)],
        is_forced=torch.zeros(size, dtype=torch.bool),
        seconds=1.0,
    )
    rows = tabulate("run", "gate", facts, thoughts, {})
    return Evaluation(None, facts, thoughts, {}, rows)


def test_gate_and_head_are_judged_in_closed_form():
    evaluation = build_evaluation(
        thinks=[1, 1, 1, 0, 0, 0, 1],
        difficulty=[1, 1, 0, 1, 0, 0, -1],
        probability=[0.9, 0.4, 0.6, 0.8, 0.2, 0.5, 0.99],
    )
    judged = judge_routing(evaluation)
    assert judged["precision"] == pytest.approx(2 / 3)
    assert judged["recall"] == pytest.approx(2 / 3)
    assert judged["head_precision"] == pytest.approx(2 / 4)  # 0.5 thinks
    assert judged["head_recall"] == pytest.approx(2 / 3)
    assert judged["head_auroc"] == pytest.approx(7 / 9)  # 0.4 is below two of three easy ones
    gaps = 0.1 + 0.6 + 0.6 + 0.2 + 0.2 + 0.5  # each in a bin of its own
    assert judged["head_ece"] == pytest.approx(gaps / 6)


def test_without_a_router_there_is_no_head():
    judged = judge_routing(build_evaluation([1, 0], [1, 0], [NAN, NAN]))
    assert judged == {"precision": 1.0, "recall": 1.0}


@pytest.mark.parametrize(
    ("thinks", "difficulty", "expected"),
    [
        ([0, 0], [1, 0], {"recall": 0.0}),
        ([1, 0], [0, 0], {"precision": 0.0}),
        ([1, 1], [-1, -1], {}),
    ],
)
def test_what_is_undefined_is_left_out(thinks, difficulty, expected):
    assert judge_routing(build_evaluation(thinks, difficulty, [NAN, NAN])) == expected


def test_auroc_needs_both_difficulties():
    judged = judge_routing(build_evaluation([1, 1], [1, 1], [0.9, 0.8]))
    assert "head_recall" in judged
    assert "head_auroc" not in judged


def test_think_rates_and_lengths_are_summarized():
    evaluation = build_evaluation([1, 0, 0, 1, 1], [1, 0, 1, 1, -1], [NAN] * 5)
    found = summarize_routing("val", evaluation)
    rates = {k.partition("difficulty/")[2]: v for k, v in found.items() if "by_difficulty" in k}
    assert rates == {"a/hard": 0.5, "b/easy": 0.0, "b/hard": 1.0}
    assert found["val/tokens_per_thinking_query"] == pytest.approx((0 + 3 + 4) / 3 + 1)


def test_nobody_thinking_has_no_length():
    found = summarize_routing("test", build_evaluation([0, 0], [1, 0], [NAN, NAN]))
    assert "test/tokens_per_thinking_query" not in found
    assert found["test/routing/recall"] == 0.0


def test_training_windows_are_logged_and_forgotten(fit):
    """Steps 1, 2 make the first point, steps 3, 4 the second."""
    expected = {"precision": [], "recall": []}
    for start in (0, 2):
        window = fit.steps[start : start + 2]
        called = torch.cat([step["router_logits"] for step in window]).sigmoid() >= 0.5
        difficulty = torch.cat([step["difficulty"] for step in window])
        hits = (called & (difficulty == 1)).sum().item()
        for name, total in (("precision", called.sum()), ("recall", (difficulty == 1).sum())):
            if total:
                expected[name].append(hits / total.item())
    assert len(expected["recall"]) == 2
    for name, values in expected.items():
        assert fit.read_scalars(f"train/router_{name}") == pytest.approx(values)


def test_validation_logs_what_the_evaluation_holds(fit):
    expected = summarize_routing("val", fit.evaluation)
    assert 0 < fit.evaluation.thoughts.thinks.float().mean() < 1
    assert {"val/routing/head_auroc", "val/tokens_per_thinking_query"} < set(expected)
    assert {name: fit.read_scalars(name) for name in expected} == {
        name: [pytest.approx(value)] for name, value in expected.items()
    }


def test_precision_and_recall_take_their_own_errors():
    found = compute_precision_recall(torch.tensor([1, 3, 100, 1, 2]))
    assert math.isclose(found["precision"], 1 / 4)
    assert math.isclose(found["recall"], 1 / 2)
