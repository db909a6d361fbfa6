import pytest
import torch

from tracelib.models.router import DifficultyRouter


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_router_stops_the_gradient_when_told_to(stop_gradient):
    states = torch.randn(5, 8, requires_grad=True)
    router = DifficultyRouter(8, stop_gradient=stop_gradient)
    logits = router(states)
    assert logits.shape == (5,)
    logits.sum().backward()
    assert (states.grad is None) == stop_gradient
    assert all(p.grad is not None for p in router.parameters())


def test_router_does_not_feel_the_scale_of_a_state():
    """Its layer norm: states of 3B and 7B backbones differ in size."""
    router, states = DifficultyRouter(8), torch.randn(5, 8)
    assert torch.allclose(router(states), router(100 * states), atol=1e-4)
    assert not torch.allclose(router(states), router(-states), atol=1e-2)
