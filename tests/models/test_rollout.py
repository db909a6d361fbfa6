"""Thoughts written in training: what the engine writes alone, whoever else is in the batch."""

import random
from dataclasses import replace

import pytest
import torch

from tests.models.conftest import SIZES
from tests.reference.thinking import think_alone
from tracelib.models.backbone import LoRA
from tracelib.models.engine import ReasoningEngine
from tracelib.models.rollout import Rollout, RolloutStore, pad_thoughts, write_thoughts
from tracelib.models.sampling import Sampling

LIMIT = 8
IDS = torch.arange(len(SIZES)) + 5_000_001
ALL = torch.ones(len(SIZES), dtype=torch.bool)
GREEDY = Sampling()


@pytest.fixture(scope="module")
def engine(make_encoder):
    """An engine whose greedy thoughts close after different numbers of tokens, or never."""
    encoder = make_encoder(LoRA(rank=4, alpha=8, dropout=0.5))
    row = next(p for name, p in encoder.named_parameters() if "trainable_tokens" in name)
    torch.manual_seed(6)
    row.data.copy_(torch.randn(row.shape))
    return ReasoningEngine(encoder, None, LIMIT)


@pytest.fixture
def chunks(processor, answered):
    """All turns with a text each, in two chunks."""
    turns = [replace(turn, response="red star") for turn in answered]
    return [processor(turns[:3]), processor(turns[3:])]


@pytest.fixture(scope="module")
def alone(engine, processor, prompts):
    """What each query writes alone, by plain forward passes."""
    return [think_alone(engine.encoder, processor([turn]), LIMIT, None)[0] for turn in prompts]


def unpad(thoughts):
    return [row[row >= 0].tolist() for row in thoughts]


def test_a_thought_is_what_the_query_writes_alone(engine, chunks, alone):
    thoughts = write_thoughts(engine, chunks, IDS, ALL, GREEDY)
    assert thoughts.shape == (len(SIZES), LIMIT)
    assert unpad(thoughts) == alone
    lengths = {len(thought) for thought in alone}
    assert LIMIT in lengths
    assert len(lengths) > 2
    assert not thoughts.requires_grad


def test_a_query_without_a_text_has_an_empty_thought(engine, processor, answered, alone):
    thoughts = write_thoughts(engine, [processor(answered)], IDS, ALL, GREEDY)
    assert unpad(thoughts) == [
        thought if turn.response else [] for thought, turn in zip(alone, answered, strict=True)
    ]
    assert {bool(turn.response) for turn in answered} == {True, False}


@pytest.mark.parametrize("wanted", [[0], [6], [1, 2], [0, 3, 5], []])
def test_only_what_is_wanted_is_written(engine, chunks, alone, wanted):
    is_wanted = torch.tensor([i in wanted for i in range(len(SIZES))])
    thoughts = write_thoughts(engine, chunks, IDS, is_wanted, GREEDY)
    assert thoughts.shape == (len(wanted), LIMIT)
    assert unpad(thoughts) == [alone[i] for i in wanted]


def test_a_drawn_thought_depends_on_query_and_seed_only(engine, chunks, processor, answered):
    def write(parts, ids, seed):
        return unpad(write_thoughts(engine, parts, ids, ALL[: len(ids)], Sampling(2.0, seed=seed)))

    first, other = write(chunks, IDS, 3), write(chunks, IDS, 4)
    assert first != other
    order = random.Random(0).sample(range(len(SIZES)), len(SIZES) - 2)
    turns = [replace(answered[i], response="blue") for i in order]
    shuffled = write([processor(turns[:1]), processor(turns[1:])], IDS[order], 3)
    assert shuffled == [first[i] for i in order]


def test_dropout_is_off_meanwhile_and_modes_come_back(engine, chunks, alone):
    encoder = engine.encoder.train()
    frozen = encoder.model.get_base_model().model.visual.eval()
    before, state = [m.training for m in encoder.modules()], torch.get_rng_state()
    try:
        assert unpad(write_thoughts(engine, chunks, IDS, ALL, GREEDY)) == alone
        assert [m.training for m in encoder.modules()] == before
        assert not frozen.training
        assert encoder.training
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        encoder.eval()


def test_what_the_pictures_gave_is_kept_for_later_passes(engine, chunks):
    shared = [replace(chunk, vision_outputs={}) for chunk in chunks]
    write_thoughts(engine, shared, IDS, ALL, GREEDY)
    assert all(chunk.vision_outputs for chunk in shared)


def test_the_token_of_a_picture_is_no_word_of_a_thought(engine, chunks, alone, monkeypatch):
    token = next(t for thought in alone for t in thought)
    monkeypatch.setattr(engine.encoder.model.config, "image_token_id", token)
    plain = [replace(c, pixel_values=None, image_grid_thw=None) for c in chunks]  # as words
    found = unpad(write_thoughts(engine, plain, IDS, ALL, GREEDY))
    monkeypatch.undo()
    expected = unpad(write_thoughts(engine, plain, IDS, ALL, GREEDY))
    assert found == [[t for t in thought if t != token] for thought in expected]
    assert found != expected


def test_a_thought_is_fresh_for_as_many_steps_as_asked():
    store, ids = RolloutStore(refresh_steps=3), torch.tensor([7, 9])
    assert store.find_fresh(ids, 0).tolist() == [False, False]
    store.put(ids[:1], torch.tensor([[1, 2, -1]]), step=10)
    assert [store.find_fresh(ids, step).tolist() for step in (10, 13, 14)] == [
        [True, False],
        [True, False],
        [False, False],
    ]
    store.put(ids, torch.tensor([[3, -1], [4, 5]]), step=13)
    assert store.read(torch.tensor([9, 7, 9])).tolist() == [[4, 5], [3, -1], [4, 5]]
    assert store.find_fresh(ids, 16).all()


def test_without_refresh_steps_a_thought_serves_its_own_step():
    store, ids = RolloutStore(refresh_steps=0), torch.tensor([7])
    store.put(ids, torch.tensor([[1]]), step=4)
    assert store.find_fresh(ids, 4).tolist() == [True]
    assert store.find_fresh(ids, 5).tolist() == [False]


def test_stale_thoughts_are_forgotten():
    store = RolloutStore(refresh_steps=2)
    for step in range(20):
        store.put(torch.tensor([step, 100]), torch.tensor([[1], [2]]), step)
    assert len(store) == 4  # those of steps 17, 18 and 19, and the one that is always renewed
    assert store.find_fresh(torch.tensor([16, 17, 100]), 19).tolist() == [False, True, True]


def test_a_store_comes_back_from_a_checkpoint_as_it_was(tmp_path):
    store = RolloutStore(refresh_steps=5)
    store.put(torch.tensor([2**40, 3]), torch.tensor([[1, 2, 3], [4, -1, -1]]), step=1)
    store.put(torch.tensor([8]), torch.full((1, 3), -1), step=2)
    torch.save(store.state_dict(), tmp_path / "state.pt")
    again = RolloutStore(refresh_steps=5)
    again.put(torch.tensor([1]), torch.tensor([[1]]), step=0)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(again) == 3
    ids = torch.tensor([3, 8, 2**40, 1])
    for step in range(9):
        assert torch.equal(again.find_fresh(ids, step), store.find_fresh(ids, step))
    assert again.read(ids[:3]).tolist() == [[4, -1, -1], [-1, -1, -1], [1, 2, 3]]
    for one in (store, again):  # also what is forgotten next
        one.put(torch.tensor([5]), torch.tensor([[6]]), step=7)
    assert len(again) == len(store) == 2
    empty = RolloutStore(0)
    empty.load_state_dict(RolloutStore(0).state_dict())
    assert len(empty) == 0


def test_thoughts_are_padded_to_a_width():
    assert pad_thoughts([]).shape == (0, 0)
    assert pad_thoughts([torch.tensor([])], 2).tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("refresh_steps", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
    ],
)
def test_a_wrong_number_names_its_option(name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}.*\(model\.rollout\.{name}\)"):
        Rollout(**{name: value})
