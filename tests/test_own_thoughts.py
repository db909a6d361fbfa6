"""The embedding is read after the model's own thought; the language model learns another text."""

import dataclasses

import pytest
import torch

from tests.test_joint_step import GROUPS, compare, join, step
from tests.tiny import build, cut_scenes, write_recipe
from tracelib.models.rollout import Rollout
from tracelib.own_thoughts import OwnThoughts

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


@pytest.fixture(scope="module")
def made(tiny_scenes, tiny_backbone, tmp_path_factory):
    root = cut_scenes(tiny_scenes, tmp_path_factory.mktemp("own") / "scenes")
    args = write_recipe(tmp_path_factory.mktemp("recipe"), root, tiny_backbone)
    module, data = build(
        [*args, "--data.num_hard_negatives=1", "--model.encoder.init_args.lora.dropout=0.3"]
    )
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return module.train(), data.train_dataset


@pytest.fixture
def module(made):
    """Without dropout, unless a test asks for it."""
    made[0].zero_grad()
    made[0].eval()
    yield made[0]
    made[0].train()


@pytest.fixture(scope="module")
def batch(made):
    return join(made[1], GROUPS, is_cached=False)


def think(module, batch, at_step=0, **options):
    own = OwnThoughts(module.encoder, Rollout(max_tokens=5, **options), 4)
    return own.add_to(batch, at_step), own


def read_thoughts(batch):
    """Return the ids of each query's own thought, its embedding token included."""
    return [
        ids[branch == 2].tolist()
        for chunk in batch.query
        for ids, branch in zip(chunk.input_ids, chunk.branches, strict=True)
    ]


def replace_texts(chunk, thoughts, emb_token_id):
    """Return a chunk whose texts are these thoughts, as if they had been annotated."""
    rows = []
    for ids, labels, mask, thought in zip(
        chunk.input_ids, chunk.labels, chunk.attention_mask, thoughts, strict=True
    ):
        prompt = ids[(labels == -100) & mask.bool()].tolist()
        assert thought[-1] == emb_token_id
        rows.append((prompt, thought))
    width = max(len(prompt) + len(thought) for prompt, thought in rows)
    filled = [p + t + [emb_token_id] * (width - len(p + t)) for p, t in rows]
    labels = [[-100] * len(p) + t + [-100] * (width - len(p + t)) for p, t in rows]
    mask = [[1] * len(p + t) + [0] * (width - len(p + t)) for p, t in rows]
    kinds = torch.zeros(len(rows), width, dtype=torch.long)
    kept = min(width, chunk.input_ids.shape[1])
    kinds[:, :kept] = chunk.mm_token_type_ids[:, :kept]
    return dataclasses.replace(
        chunk,
        input_ids=torch.tensor(filled),
        labels=torch.tensor(labels),
        attention_mask=torch.tensor(mask),
        mm_token_type_ids=kinds,
    )


def test_each_loss_sees_its_own_text(module, batch):
    """The joint loss is the language-modelling term of one batch, the contrastive of another."""
    own, _ = think(module, batch)
    thoughts = iter(read_thoughts(own))
    emb = module.encoder.emb_token_id
    rewritten = dataclasses.replace(
        batch,
        query=[
            replace_texts(c, [next(thoughts) for _ in range(len(c.input_ids))], emb)
            for c in batch.query
        ],
    )
    (both, found), (text, text_grads), (thought, thought_grads) = (
        _step_on_weights(module, b) for b in (own, batch, rewritten)
    )
    assert both["lm_loss"].item() == pytest.approx(text["lm_loss"].item(), rel=1e-5)
    assert both["contrastive_loss"].item() == pytest.approx(
        thought["contrastive_loss"].item(), rel=1e-5
    )
    assert compare(found["lm"], text_grads["lm"]) < 1e-5
    assert compare(found["contrastive"], thought_grads["contrastive"]) < 1e-5
    # the negative controls
    assert both["lm_loss"].item() != pytest.approx(thought["lm_loss"].item(), rel=1e-2)
    assert both["contrastive_loss"].item() != pytest.approx(
        text["contrastive_loss"].item(), rel=1e-2
    )
    assert compare(found["lm"], thought_grads["lm"]) > 0.01
    assert compare(found["contrastive"], text_grads["contrastive"]) > 0.01


def _step_on_weights(module, batch):
    """Return the losses, and the gradients of the two terms that read texts."""
    gradients, whole = {}, module.joint_step.weights
    for name in ("lm", "contrastive"):
        zeros = dict.fromkeys(("contrastive", "lm", "router"), 0.0)
        module.joint_step.weights = dataclasses.replace(whole, **(zeros | {name: 1.0}))
        module.zero_grad()
        output, gradients[name] = step(module, batch)
    module.joint_step.weights = whole
    return output.losses, gradients


def test_thoughts_carry_no_gradient_and_no_dropout(made, batch):
    """A training model writes what it would write in evaluation, and goes on training."""
    module = made[0].train()
    module.zero_grad()
    modes = [m.training for m in module.modules()]
    own, _ = think(module, batch)
    assert [m.training for m in module.modules()] == modes
    module.eval()
    again, _ = think(module, batch)
    module.train()
    assert read_thoughts(own) == read_thoughts(again)
    assert any(len(thought) > 1 for thought in read_thoughts(own))
    assert not any(chunk.input_ids.requires_grad for chunk in own.query)
    assert all(p.grad is None for p in module.parameters())


def test_only_queries_with_a_text_think(module, batch):
    own, _ = think(module, batch)
    has_text = [n > 1 for c in batch.query for n in (c.labels != -100).sum(1).tolist()]
    assert [len(thought) > 1 for thought in read_thoughts(own)] == has_text
    assert 0 < sum(has_text) < len(has_text)


def test_cached_step_is_the_plain_step(module, batch):
    own, _ = think(module, batch)
    plain, expected = step(module, own)
    module.zero_grad()
    cached, gradients = step(module, dataclasses.replace(own, is_cached=True))
    assert cached.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert compare(gradients, expected) < 1e-5


def test_old_thoughts_serve_until_they_are_too_old(module, batch):
    first, own = think(module, batch, refresh_steps=10)
    weights = [p for p in module.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for parameter in weights:
            parameter.add_(torch.randn_like(parameter))
        try:
            kept, renewed = (read_thoughts(own.add_to(batch, at)) for at in (10, 11))
        finally:
            for parameter, value in zip(weights, before, strict=True):
                parameter.copy_(value)
    assert kept == read_thoughts(first)
    assert renewed != kept
