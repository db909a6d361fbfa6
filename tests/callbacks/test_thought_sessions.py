import json

import pytest
import torch

from tests.tiny import build, cut_scenes, write_recipe
from tracelib.callbacks.thought_sessions import think
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.models.sampling import Sampling


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("thoughts") / "scenes")


@pytest.fixture(scope="module", params=[-1, 0])
def embedder(request, root, tiny_backbone, tmp_path_factory):
    """A model of each read offset, and a batch of queries in two parts."""
    args = write_recipe(tmp_path_factory.mktemp("thoughts"), root, tiny_backbone)
    option = f"--model.encoder.init_args.read_offset={request.param}"
    module, data = build([*args, option, "--data.eval_batch_size=4"])
    (batch,), _ = data.build_evaluation_loaders("val", [list(range(7))], [])
    assert len(batch.inputs) == 2
    return module.eval(), batch


def check_equal(ours, theirs):
    for name, value in vars(theirs).items():
        if name == "rationale_token_ids":
            assert ours.rationale_token_ids == value
        else:
            torch.testing.assert_close(getattr(ours, name), value, equal_nan=True)


def test_one_pass_gives_what_two_gates_give(embedder):
    module, batch = embedder
    direct, thought = think(module, batch, Sampling())
    check_equal(direct, module.embed_queries(batch, NeverGate()))
    check_equal(thought, module.embed_queries(batch, AlwaysGate()))
    assert not torch.equal(direct.embeddings, thought.embeddings)


def test_each_sample_is_that_of_its_query(embedder):
    module, batch = embedder
    three = think(module, batch, Sampling(temperature=1.0, num_samples=3, seed=4))
    two = think(module, batch, Sampling(temperature=1.0, num_samples=2, seed=4))
    assert [len(outputs) for outputs in (three, two)] == [4, 3]
    check_equal(three[0], module.embed_queries(batch, NeverGate()))
    for ours, theirs in zip(three, two, strict=False):
        check_equal(ours, theirs)  # more samples leave the first ones as they are
    texts = [json.dumps(output.rationale_token_ids) for output in three[1:]]
    assert len(set(texts)) == 3
