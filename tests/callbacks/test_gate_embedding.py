"""One pass that serves two gates stores what two passes would."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.tiny import build, cut_scenes, write_recipe
from tracelib.callbacks.gate_embedding import SplitEmbedder
from tracelib.models.gates import AlwaysGate, FirstTokenGate, NeverGate

GATES = [NeverGate(), AlwaysGate()]


@pytest.fixture(scope="module")
def make_embedder(tiny_scenes, tiny_backbone, tmp_path_factory):
    root = cut_scenes(tiny_scenes, tmp_path_factory.mktemp("gates") / "scenes")

    def make(*options):
        args = write_recipe(tmp_path_factory.mktemp("recipe"), root, tiny_backbone)
        module, data = build([*args, *options])
        return SplitEmbedder("tiny", module.eval(), data, "val", Console(file=io.StringIO()))

    return make


@pytest.fixture(scope="module")
def embedder(make_embedder):
    return make_embedder()


def embed(embedder, folder, gates=GATES, shares_pass=False):
    sessions = embedder.open_sessions(gates, folder, "weights")
    seconds = embedder.embed_queries(gates, sessions, shares_pass)
    for session in sessions:
        session.queries.flush()
    return sessions, seconds


def read_store(folder: Path):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_pass_stores_the_bytes_of_two(embedder, tmp_path):
    _, separate = embed(embedder, tmp_path / "two")
    _, shared = embed(embedder, tmp_path / "one", shares_pass=True)
    assert read_store(tmp_path / "one") == read_store(tmp_path / "two")
    assert separate["never"] > 0
    assert separate["always"] > 0
    assert shared["never"] is None  # nobody knows
    assert shared["always"] > 0


def test_the_two_gates_are_told_apart(embedder, tmp_path):
    (never, always), _ = embed(embedder, tmp_path, shares_pass=True)
    never, always = (session.read_thoughts(None) for session in (never, always))
    assert not never.thinks.any()
    assert always.thinks.all()
    assert never.num_tokens.tolist() == [1.0] * len(never.thinks)
    assert (always.num_tokens > 1).all()
    assert torch.equal(never.emb_is_first, always.emb_is_first)
    assert torch.equal(never.think_probability, always.think_probability)


def test_where_the_token_itself_is_read_no_pass_is_shared(make_embedder, tmp_path):
    embedder = make_embedder("--model.encoder.init_args.read_offset=0")
    (separate, _), _ = embed(embedder, tmp_path / "two")
    (shared, _), seconds = embed(embedder, tmp_path / "one", shares_pass=True)
    assert seconds["never"] > 0
    np.testing.assert_array_equal(shared.read_query_embeddings(), separate.read_query_embeddings())


def test_what_is_stored_is_not_timed_again(embedder, tmp_path):
    embed(embedder, tmp_path, [NeverGate()])
    before = read_store(tmp_path)
    gates = [NeverGate(), FirstTokenGate()]
    _, seconds = embed(embedder, tmp_path, gates)
    assert seconds["never"] is None
    assert seconds["first_token"] > 0
    assert before.items() <= read_store(tmp_path).items()


def test_candidates_are_stored_once_for_all_gates(embedder, tmp_path):
    for gate in GATES:
        (session,) = embedder.open_sessions([gate], tmp_path, "weights")
        embedder.embed_candidates(session)
        session.candidates.flush()
        session.candidates.fill_repeats()
        found = read_store(tmp_path / "candidates")
    assert len([name for name in found if name.endswith(".npy")]) == 8
    assert not list((tmp_path / "queries").rglob("*.npy"))
