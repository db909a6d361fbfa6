import math

import pytest
import torch

from tests.reference.losses import router_loss
from tracelib.losses.routing import compute_router_loss


def test_zero_logits_give_log_two():
    loss = compute_router_loss(torch.zeros(4), torch.tensor([0, 1, 1, -1]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("label", "expected"), [(1, math.log1p(math.exp(-2))), (0, math.log1p(math.exp(2)))]
)
def test_positive_logit_means_difficult(label, expected):
    loss = compute_router_loss(torch.tensor([2.0]), torch.tensor([label]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_agrees_with_float64_on_values_and_gradients():
    logits = torch.randn(20, requires_grad=True)
    difficulty = torch.arange(20) % 3 - 1
    loss = compute_router_loss(logits, difficulty)
    slow_logits = logits.double()
    slow = router_loss(slow_logits, difficulty.tolist())
    assert loss.item() == pytest.approx(slow.item(), abs=1e-6)
    (gradient,), (expected,) = (
        torch.autograd.grad(loss, logits),
        torch.autograd.grad(slow, slow_logits),
    )
    assert torch.allclose(gradient.double(), expected, atol=1e-6)
    assert gradient[difficulty == -1].abs().max() == 0
    taken_as_easy = compute_router_loss(logits, difficulty.clamp(min=0))  # the negative control
    assert taken_as_easy.item() != pytest.approx(slow.item(), abs=1e-3)


def test_a_probability_is_least_costly_at_its_own_logit():
    target = torch.tensor([0.25, 0.9, -1.0])
    logits = torch.tensor([0.25, 0.9, 0.5]).logit().requires_grad_()
    loss = compute_router_loss(logits, target)
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.25, 0.9)]
    assert loss.item() == pytest.approx(sum(entropy) / 2, abs=1e-6)
    loss.backward()
    assert logits.grad.abs().max() < 1e-6
    rounded = compute_router_loss(logits, target.round())  # the control: other labels, other loss
    assert rounded.item() != pytest.approx(loss.item(), abs=1e-2)


def test_probabilities_0_and_1_are_the_labels():
    logits, labels = torch.randn(12), torch.arange(12) % 3 - 1
    assert compute_router_loss(logits, labels.float()) == compute_router_loss(logits, labels)


@pytest.mark.parametrize("size", [0, 3])
def test_nothing_known_gives_zero_and_zero_gradient(size):
    logits = torch.randn(size, requires_grad=True)
    loss = compute_router_loss(logits, torch.full((size,), -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [0] * size


def test_low_precision_logits_give_a_float32_loss():
    loss = compute_router_loss(torch.tensor([1.0, -1.0]).bfloat16(), torch.tensor([1, 0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-6)


def test_large_logits_stay_finite():
    logits = torch.tensor([200.0, -200.0])
    assert compute_router_loss(logits, torch.tensor([1, 0])).item() == 0
    assert compute_router_loss(logits, torch.tensor([0, 1])).item() == 200


@pytest.mark.parametrize(
    ("logits", "difficulty", "message"),
    [
        (
            torch.zeros(2),
            torch.tensor([0, 2]),
            r"difficulty of row 1 is 2; allowed -1 and 0 \.\. 1",
        ),
        (torch.zeros(2), torch.tensor([-0.5, 0.0]), r"difficulty of row 0 is -0\.5"),
        (torch.zeros(2), torch.tensor([1.0, float("nan")]), "difficulty of row 1 is nan"),
        (torch.zeros(2, 1), torch.tensor([0, 1]), r"logits \(2, 1\), difficulty \(2,\)"),
    ],
)
def test_misuse_is_named(logits, difficulty, message):
    with pytest.raises(ValueError, match=message):
        compute_router_loss(logits, difficulty)
