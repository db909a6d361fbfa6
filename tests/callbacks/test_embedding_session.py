"""What a store is keyed by, and that equal candidates share one embedding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.tiny import build, cut_scenes, rewrite_rows, write_recipe
from tracelib.callbacks.embedding_session import EmbeddingSession, build_keys
from tracelib.callbacks.stored_evaluation import evaluate_session
from tracelib.data.layout import Layout
from tracelib.models.gates import AlwaysGate, HeadGate, NeverGate
from tracelib.retrieval.store import StoreError, compute_digest
from tracelib.types import QueryBatch

COLUMN = "scenes_task0"


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    """A benchmark in one of whose pools three candidates are the same picture."""
    root = cut_scenes(tiny_scenes, tmp_path_factory.mktemp("session") / "scenes")
    rewrite_rows(Layout(root).pool(COLUMN, "val"), repeat_picture)
    return root


def repeat_picture(rows):
    return [
        row | ({"img_path": rows[1]["img_path"]} if i in (4, 6) else {})
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def built(root, tiny_backbone, tmp_path_factory):
    module, data = build(write_recipe(tmp_path_factory.mktemp("recipe"), root, tiny_backbone))
    return module.eval(), data


def make_keys(built, gate=None, fingerprint="weights", precision="32-true"):
    return build_keys(*built, gate or NeverGate(), fingerprint, precision)


def make_session(built, folder, gate=None, **changes):
    module, data = built
    return EmbeddingSession(
        data, "val", folder, make_keys(built, gate, **changes), module.encoder.hidden_size
    )


def embed(session, built, gate):
    module, data = built
    plan = session.plan_batches()
    with torch.no_grad():
        for loader in data.build_evaluation_loaders("val", *plan):
            for batch in loader:
                if isinstance(batch, QueryBatch):
                    session.write_queries(batch, module.embed_queries(batch, gate))
                else:
                    session.write_candidates(batch, module.embed_candidates(batch))
    return plan


def test_the_gate_is_in_the_key_of_queries_alone(built):
    keys = [make_keys(built, g) for g in (NeverGate(), HeadGate(0.5), HeadGate(0.6))]
    assert len({compute_digest(key.query) for key in keys}) == 3
    assert len({compute_digest(key.candidate) for key in keys}) == 1


@pytest.mark.parametrize("change", [{"fingerprint": "others"}, {"precision": "bf16-mixed"}])
def test_weights_and_precision_are_in_both_keys(built, change):
    before, after = make_keys(built), make_keys(built, **change)
    assert before.query != after.query
    assert before.candidate != after.candidate


def test_words_are_in_the_key(root, tiny_backbone, tmp_path):
    args = write_recipe(tmp_path, root, tiny_backbone)
    keys = [
        make_keys(build([*args, *option]))
        for option in ([], ["--data.query_template.system=Think."], ["--data.prompt_policy=random"])
    ]
    assert len({compute_digest(key.query) for key in keys}) == 3
    assert len({compute_digest(key.candidate) for key in keys}) == 1


def test_the_fingerprint_follows_what_is_trained(built, root, tiny_backbone, tmp_path):
    module = build(write_recipe(tmp_path, root, tiny_backbone))[0]
    before = module.compute_fingerprint()
    assert module.compute_fingerprint() == before
    trained = next(p for p in module.parameters() if p.requires_grad)
    with torch.no_grad():
        trained.flatten()[0] += 1
    after = module.compute_fingerprint()
    assert after != before
    module.task_counts[0, 0] += 1
    assert module.compute_fingerprint() not in (before, after)


@pytest.mark.parametrize("option", ["--model.encoder.init_args.lora.alpha=64", None])
def test_what_scales_the_adapter_is_in_the_fingerprint(
    built, root, tiny_backbone, tmp_path, option
):
    args = write_recipe(tmp_path, root, tiny_backbone)
    module = build([*args, *([option] if option else [])])[0]
    module.load_state_dict(built[0].state_dict())
    same = module.compute_fingerprint() == built[0].compute_fingerprint()
    assert same == (option is None)


def test_how_pictures_and_words_become_tokens_is_in_the_key(root, tiny_backbone, tmp_path):
    data = build(write_recipe(tmp_path, root, tiny_backbone))[1]
    before = data.processor.compute_digest()
    data.processor.pictures.image_processor.image_mean = [0.1, 0.1, 0.1]
    changed = data.processor.compute_digest()
    data.processor.tokenizer.chat_template += " "
    assert len({before, changed, data.processor.compute_digest()}) == 3


def test_a_store_of_other_weights_is_refused(built, tmp_path):
    session = make_session(built, tmp_path)
    part = next(iter(session.candidates.parts.values()))
    text = (part.folder / "key.json").read_text()
    (part.folder / "key.json").write_text(text.replace('"weights": "weights"', '"weights": "x"'))
    with pytest.raises(StoreError, match="weights 'x' there, weights 'weights' asked for"):
        make_session(built, tmp_path)


def test_equal_candidates_are_embedded_once_and_tie(built, tmp_path):
    session = make_session(built, tmp_path)
    _, candidates = embed(session, built, NeverGate())
    pool = session.found.pools[COLUMN]
    same = {pool.start + i for i in (1, 4, 6)}
    assert len(same & {place for batch in candidates for place in batch}) == 1
    evaluation = evaluate_session(session, "run", "never", None, torch.device("cpu"))
    rows = session.candidates.read("embedding")
    first, *others = sorted(same)
    for other in others:
        np.testing.assert_array_equal(rows[first], rows[other])
    span = session.found.query_spans[COLUMN]
    for places in evaluation.rankings["local"].places[span.start : span.stop].tolist():
        assert places.index(first) + 1 == places.index(others[0]) == places.index(others[1]) - 1


@pytest.mark.parametrize("window", [1, 2, 8])
def test_a_window_of_query_batches_is_embedded_at_once(built, tmp_path, monkeypatch, window):
    data = built[1]
    monkeypatch.setattr(data, "eval_window", window)
    monkeypatch.setattr(data, "eval_batch_size", 2)
    session = make_session(built, tmp_path)
    queries, candidates = session.plan_batches()
    columns = session.found.query_spans.values()
    assert {len(span) for span in columns} == {4}
    assert max(map(len, queries)) == 2 * window
    num_columns = {sum(bool({*batch} & {*span}) for span in columns) for batch in queries}
    assert max(num_columns) == max(1, window // 2)
    assert max(map(len, candidates)) == 2
    assert sorted(place for batch in queries for place in batch) == list(
        range(len(session.found.queries))
    )


def test_thoughts_come_back_as_they_were(built, tmp_path):
    module, data = built
    session = make_session(built, tmp_path, AlwaysGate())
    embed(session, built, AlwaysGate())
    session.finish()
    thoughts = session.read_thoughts(None)
    batch = next(iter(data.build_evaluation_loaders("val", [[3, 11, 30]], [[0]])[0]))
    with torch.no_grad():
        expected = module.embed_queries(batch, AlwaysGate())
    for row, place in enumerate((3, 11, 30)):
        assert thoughts.rationale_token_ids[place] == expected.rationale_token_ids[row]
        assert thoughts.thinks[place] == expected.thinks[row]
        assert thoughts.think_probability[place] == pytest.approx(expected.think_probability[row])
        assert thoughts.emb_is_first[place] == expected.emb_is_first[row]
        stored = session.read_query_embeddings()[place]
        direct = torch.nn.functional.normalize(expected.embeddings[row], dim=0)
        torch.testing.assert_close(stored, direct, atol=1e-5, rtol=0)


def test_an_evaluation_of_a_store_that_lacks_rows_is_refused(built, tmp_path):
    session = make_session(built, tmp_path)
    session.plan_batches()
    with pytest.raises(StoreError, match="not whole; embed again"):
        evaluate_session(session, "run", "never", None, torch.device("cpu"))


def test_keys_hold_nothing_but_json(built):
    for key in dataclasses.astuple(make_keys(built, HeadGate())):
        assert compute_digest(key)
