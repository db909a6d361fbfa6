import torch
from torch import nn

from tracelib.planning.saved_tensors import SavedTensorMeter


def test_what_the_backward_pass_reads_is_counted_once():
    x = torch.ones(1000, requires_grad=True)
    with SavedTensorMeter([]) as meter:
        y = x.exp()  # keeps its result
        z = y * y  # keeps the same
    assert meter.peak_bytes == 4000
    z.sum().backward()


def test_weights_are_left_out():
    layer = nn.Linear(10, 20, bias=False)
    with SavedTensorMeter(layer.parameters()) as meter:
        layer(torch.ones(5, 10, requires_grad=True))
    assert meter.peak_bytes == 5 * 10 * 4


def test_what_was_freed_makes_room():
    x = torch.ones(1000, requires_grad=True)
    with SavedTensorMeter([]) as meter:
        for _ in range(3):
            x.exp().sum().backward()
        assert meter.peak_bytes == 4000
        held = [x.exp() for _ in range(3)]
    assert meter.peak_bytes == 12_000
    del held
