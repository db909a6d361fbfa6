import copy

import pytest
import torch
from torch import nn

from tracelib.models.vision_memory import VisionMemory


class Block(nn.Module):
    """Multiplies, and counts how often it was asked to."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)), requires_grad=False)
        self.num_calls = 0

    def forward(self, states, offset=0):
        self.num_calls += 1
        return states * self.factor + offset


@pytest.fixture
def blocks():
    return nn.ModuleList(Block(factor) for factor in (2, 3, 5))


def run(blocks, states):
    """Return the last output and that of the first block, which is read as well."""
    states = first = blocks[0](states, offset=1)
    for block in blocks[1:]:
        states = block(states)
    return states.item(), first.item()


def test_second_pass_gives_what_the_first_gave(blocks):
    memory, outputs = VisionMemory(blocks, [0]), {}
    with memory.share(outputs):
        given = run(blocks, torch.ones(1))
    with memory.share(outputs):
        again = run(blocks, torch.ones(1))
    assert given == again == (45, 3)
    assert [block.num_calls for block in blocks] == [1, 1, 1]
    assert set(outputs) == {0, 2}


def test_chunks_have_outputs_of_their_own(blocks):
    memory, chunks = VisionMemory(blocks), [{}, {}]
    for _ in range(2):
        for value, outputs in zip((1.0, 10.0), chunks, strict=True):
            with memory.share(outputs):
                assert run(blocks, torch.tensor([value]))[0] == 15 * (2 * value + 1)
    assert blocks[0].num_calls == 2


def test_nothing_is_remembered_unasked(blocks):
    memory = VisionMemory(blocks)
    for outputs in (None, None, {}):
        with memory.share(outputs):
            run(blocks, torch.ones(1))
    run(blocks, torch.ones(1))
    assert blocks[0].num_calls == 4


def test_a_copy_runs_its_own_blocks(blocks):
    VisionMemory(blocks)
    copied = copy.deepcopy(blocks)
    copied[0].factor.fill_(7)
    assert run(copied, torch.ones(1))[0] == 8 * 15
    assert run(blocks, torch.ones(1))[0] == 3 * 15
    assert [block.num_calls for block in blocks] == [1, 1, 1]


def test_a_trained_vision_encoder_is_refused(blocks):
    blocks[1].factor.requires_grad_(True)
    with pytest.raises(ValueError, match="vision encoder is trained"):
        VisionMemory(blocks)
