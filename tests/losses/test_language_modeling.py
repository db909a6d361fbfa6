import math

import pytest
import torch

from tests.reference.losses import lm_loss
from tracelib.losses.language_modeling import compute_lm_loss


@pytest.mark.parametrize("vocabulary", [2, 300])
def test_uniform_logits_give_log_of_the_vocabulary(vocabulary):
    loss = compute_lm_loss(torch.full((5, vocabulary), 3.0), torch.tensor([0, 1, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(vocabulary), rel=1e-6)


@pytest.mark.parametrize("num_tokens", [None, 2, torch.tensor(7.5)])
def test_agrees_with_float64_on_values_and_gradients(num_tokens):
    logits = torch.randn(6, 11, requires_grad=True)
    targets = torch.randint(11, (6,))
    loss = compute_lm_loss(logits, targets, num_tokens)
    slow_logits = logits.double()
    divisor = 6 if num_tokens is None else float(num_tokens)
    slow = lm_loss(slow_logits, targets.tolist(), divisor)
    assert loss.item() == pytest.approx(slow.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(slow, slow_logits)
    assert torch.allclose(gradient.double(), expected, atol=1e-6)
    shifted = lm_loss(slow_logits, targets.roll(1).tolist(), divisor)  # the negative control
    assert loss.item() != pytest.approx(shifted.item(), rel=1e-3)


def test_halves_with_the_mean_count_average_to_the_whole():
    logits, targets = torch.randn(6, 11), torch.randint(11, (6,))
    whole = compute_lm_loss(logits, targets)
    parts = [(logits[:1], targets[:1]), (logits[1:], targets[1:])]
    right = sum(compute_lm_loss(*part, num_tokens=3) for part in parts) / 2
    wrong = sum(compute_lm_loss(*part) for part in parts) / 2
    assert right.item() == pytest.approx(whole.item(), rel=1e-6)
    assert wrong.item() != pytest.approx(whole.item(), rel=1e-3)


def test_no_target_gives_zero_and_zero_gradient():
    hidden = torch.randn(0, 4)
    weight = torch.randn(4, 11, requires_grad=True)
    loss = compute_lm_loss(hidden @ weight, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(weight.grad, torch.zeros(4, 11))


def test_low_precision_logits_are_summed_in_float32():
    logits, targets = torch.randn(6, 300).bfloat16(), torch.randint(300, (6,))
    loss = compute_lm_loss(logits, targets)
    assert loss.dtype == torch.float32
    expected = lm_loss(logits.double(), targets.tolist(), 6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
