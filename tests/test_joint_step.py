"""A step whose chunks are encoded twice, one at a time, is a step that holds them all."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from tests.tiny import build, cut_scenes, write_recipe
from tracelib.models.backbone_parts import find_vision_blocks

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
GROUPS = [[0, 3, 5], [8, 21, 30, 31], [0, 40]]
"""Queries of each chunk; the first comes twice, so that its copy's positive is left out."""
SETTINGS = [
    "--data.num_hard_negatives=1",
    "--model.router_stop_gradient=false",
    "--model.encoder.init_args.lora.dropout=0.3",
    "--model.contrastive.init_args.learn_temperature=true",
    "--model.contrastive_weight=0.7",
    "--model.lm_weight=0.3",
]


@pytest.fixture(scope="module")
def made(tiny_scenes, tiny_backbone, tmp_path_factory):
    root = cut_scenes(tiny_scenes, tmp_path_factory.mktemp("step") / "scenes")
    args = write_recipe(tmp_path_factory.mktemp("recipe"), root, tiny_backbone)
    module, data = build([*args, *SETTINGS])
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return module.train(), data.train_dataset


@pytest.fixture
def module(made):
    made[0].zero_grad()
    return made[0]


def join(dataset, groups, is_cached):
    """Return a batch with a chunk of queries and one of candidates for each group."""
    parts = [dataset[group] for group in groups]
    starts = torch.tensor([0, *(len(part.candidate_ids) for part in parts)]).cumsum(0)
    width = max(part.positive_ids.shape[1] for part in parts)
    values = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("task_ids", "query_ids", "difficulty", "candidate_ids")
    }
    return dataclasses.replace(
        parts[0],
        query=[chunk for part in parts for chunk in part.query],
        candidate=[chunk for part in parts for chunk in part.candidate],
        targets=torch.cat([p.targets + start for p, start in zip(parts, starts, strict=False)]),
        positive_ids=torch.cat(
            [
                functional.pad(p.positive_ids, (0, width - p.positive_ids.shape[1]), value=-1)
                for p in parts
            ]
        ),
        is_cached=is_cached,
        **values,
    )


def step(module, batch, seed=0):
    """Return the losses and the gradients of a step whose dropout is drawn from `seed`."""
    torch.manual_seed(seed)
    output = module.joint_step.run(batch, torch.autograd.backward)
    output.loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.requires_grad}
    return output, gradients


def compare(gradients, expected):
    """Return the largest difference relative to the largest gradient, over all weights."""
    assert set(gradients) == set(expected)
    difference = max((gradients[n] - expected[n]).abs().max() for n in expected)
    return float(difference / max(g.abs().max() for g in expected.values()))


def test_cached_step_is_the_plain_step(made, module):
    dataset = made[1]
    plain, expected = step(module, join(dataset, GROUPS, is_cached=False))
    module.zero_grad()
    cached, gradients = step(module, join(dataset, GROUPS, is_cached=True))
    assert cached.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    assert set(cached.losses) == {"contrastive_loss", "lm_loss", "router_loss"}
    for name, loss in plain.losses.items():
        assert not cached.losses[name].requires_grad
        assert cached.losses[name].item() == pytest.approx(loss.item(), rel=1e-6), name
    assert torch.allclose(cached.router_logits, plain.router_logits, atol=1e-6)
    assert compare(gradients, expected) < 1e-5
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_batches_of_their_own_are_something_else(made, module):
    """The negative control: gradients added up over small batches know fewer negatives."""
    dataset = made[1]
    _, expected = step(module, join(dataset, GROUPS, is_cached=True))
    module.zero_grad()
    for group in GROUPS:
        output = module.joint_step.run(join(dataset, [group], is_cached=False), None)
        (output.loss / len(GROUPS)).backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    assert compare(gradients, expected) > 0.01


def test_dropout_of_the_second_pass_is_that_of_the_first(made, module):
    """Else the embeddings that the gradient is taken at were others; later numbers move on."""
    dataset = made[1]
    batch = join(dataset, GROUPS, is_cached=True)
    _, first = step(module, batch, seed=0)
    after = torch.rand(1)
    module.zero_grad()
    _, again = step(module, batch, seed=0)
    assert torch.equal(torch.rand(1), after)
    assert compare(again, first) == 0
    module.zero_grad()
    assert compare(step(module, batch, seed=1)[1], first) > 1e-3


def test_a_frozen_vision_encoder_sees_each_picture_once(made, module):
    seen = []
    blocks = find_vision_blocks(module.encoder.model)
    hooks = [
        norm.register_forward_hook(lambda *_: seen.append(1))
        for norm in (block.norm1 for block in blocks)
    ]
    batch = join(made[1], GROUPS, is_cached=True)
    step(module, batch)
    for hook in hooks:
        hook.remove()
    num_chunks = sum(c.pixel_values is not None for c in [*batch.query, *batch.candidate])
    assert num_chunks > 3
    assert len(seen) == len(blocks) * num_chunks


def test_one_chunk_is_held_at_a_time(made, module):
    """Tensors saved for the backward pass do not pile up with the number of chunks."""
    peaks = []
    for groups in ([GROUPS[1]], [GROUPS[1]] * 4):
        batch = join(made[1], groups, is_cached=True)
        held = [0, 0]

        def pack(tensor, held=held):
            held[0] += tensor.numel()
            held[1] = max(held)
            return tensor

        def backward(loss, held=held):
            loss.backward()
            held[0] = 0

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module.joint_step.run(batch, backward)
        peaks.append(held[1])
    assert peaks[1] < 1.5 * peaks[0]
