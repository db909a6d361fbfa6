"""The invariances of reason-then-embed: decoding step by step gives what one plain pass gives."""

import copy
import random
from collections import Counter
from dataclasses import replace
from itertools import cycle
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from transformers import DynamicCache, StaticCache

from tests.reference.thinking import think_alone
from tracelib.data.collator import Turn
from tracelib.models.decode_cache import DecodeCache
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import (
    AlwaysGate,
    FirstTokenGate,
    Gate,
    HeadGate,
    NeverGate,
    TaskPriorGate,
)
from tracelib.models.router import DifficultyRouter
from tracelib.prompts import Template
from tracelib.types import EncoderInput

LIMIT = 6
LONG_LIMIT = 40
NEVER = NeverGate()
TOLERANCE = 1e-5
LAYOUTS = {"at once": [24], "one by one": [1] * 24, "uneven": [5, 1, 11, 7]}


class SomeGate(Gate):
    """Thinks on the queries it is told to."""

    name = "some"

    def __init__(self, query_ids):
        self.query_ids = query_ids

    def decide(self, features):
        return torch.tensor([i in self.query_ids for i in features.query_ids.tolist()])


class Alone(NamedTuple):
    """What queries come to by plain forward passes, each alone."""

    direct: list[torch.Tensor]
    prompt_states: list[torch.Tensor]
    rationales: list[list[int]]
    is_forced: list[bool]
    thought: list[torch.Tensor]


def make_thinker(make_encoder, seed, **settings):
    """Return an encoder; the seed decides after how many tokens its thoughts close."""
    encoder = make_encoder(**settings)
    rows = [p for name, p in encoder.named_parameters() if "trainable_tokens" in name]
    torch.manual_seed(seed)
    rows[0].data.copy_(torch.randn(rows[0].shape))
    return encoder


@pytest.fixture(scope="module")
def encoders(make_encoder):
    """By read offset: encoders that close their thoughts after different numbers of tokens."""
    return {offset: make_thinker(make_encoder, 0, read_offset=offset) for offset in (-1, 0)}


@pytest.fixture(scope="module")
def thinkers(make_encoder):
    """By read offset: encoders whose thoughts are anything between 1 token and far too long."""
    return {offset: make_thinker(make_encoder, 6, read_offset=offset) for offset in (-1, 0)}


@pytest.fixture(scope="module")
def many():
    """Two dozen prompts of 16 to 68 tokens, with pictures of five sizes and without."""
    rng = random.Random(1)
    words = ("red", "blue", "star", "moon", "swap top row", "copy top left to bottom right")
    sizes = (None, (28, 28), (84, 56), None, (56, 56), (140, 84), None, (56, 28))
    turns = []
    for size in 3 * sizes:
        pixels = rng.randbytes(3 * size[0] * size[1]) if size else b""
        images = [Image.frombytes("RGB", size, pixels)] if size else []
        text = " ".join(rng.choice(words) for _ in range(rng.randrange(1, 14)))
        turns.append(Turn(Template().build_messages(len(images), "Find it.", text, -1), images))
    return turns


@pytest.fixture(scope="module")
def alone(thinkers, processor, many, encode_alone):
    """By read offset: what each of the many comes to alone."""
    found = {}
    for offset, encoder in thinkers.items():
        thoughts = [think_alone(encoder, processor([t]), LONG_LIMIT, None) for t in many]
        rationales, is_forced, states = zip(*thoughts, strict=True)
        thought = [encode_alone(encoder, t, ids) for t, ids in zip(many, rationales, strict=True)]
        assert all(close(a, b) for a, b in zip(thought, states, strict=True))
        found[offset] = Alone(
            [encode_alone(encoder, turn, []) for turn in many],
            [encode_alone(thinkers[-1], turn, []) for turn in many],
            list(rationales),
            list(is_forced),
            thought,
        )
    return found


def run(encoder, prompts, gate=NEVER, limit=LIMIT, router=None, prior=None, slots=128, ids=None):
    parts = prompts if isinstance(prompts, list) else [prompts]
    ids = torch.arange(sum(len(part.input_ids) for part in parts)) if ids is None else ids
    prior = torch.zeros(len(ids)) if prior is None else prior
    return ReasoningEngine(encoder, router, limit, slots).embed_queries(parts, gate, prior, ids)


def render_parts(processor, turns, order, sizes, sides=("left", "right")):
    """Return the turns in an order, in parts of some sizes that are padded on changing sides."""
    rest, parts = list(order), []
    for size, side in zip(sizes, cycle(sides), strict=False):
        part, rest = rest[:size], rest[size:]
        parts.append(processor([turns[i] for i in part], side))
    assert not rest
    return parts


def check_rows(output, alone, order):
    """Compare every row with what its query comes to alone."""
    for row, query in enumerate(order):
        thinks = bool(output.thinks[row])
        assert output.rationale_token_ids[row] == alone.rationales[query] * thinks
        assert bool(output.is_forced[row]) == (alone.is_forced[query] and thinks)
        expected = (alone.thought if thinks else alone.direct)[query]
        assert close(output.embeddings[row], expected), (row, query)
        assert close(output.direct_embeddings[row], alone.prompt_states[query])


def close(a, b, tolerance=TOLERANCE):
    return (a - b).abs().max() < tolerance * b.abs().max()


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize("gate", [NeverGate(), AlwaysGate(), FirstTokenGate(), SomeGate({1, 2, 6})])
def test_embedding_is_that_of_a_full_forward_of_the_row_alone(
    encoders, processor, prompts, encode_alone, read_offset, gate
):
    encoder = encoders[read_offset]
    output = run(encoder, processor(prompts, "left"), gate)
    for row, turn in enumerate(prompts):
        ids = output.rationale_token_ids[row]
        assert bool(ids) == bool(output.thinks[row])
        assert close(output.embeddings[row], encode_alone(encoder, turn, ids)), row


def test_the_thoughts_of_the_fixture_end_at_different_lengths(encoders, processor, prompts):
    """What the other tests rest on: early ends, an end at the very limit, and overruns."""
    output = run(encoders[-1], processor(prompts, "left"), AlwaysGate())
    lengths = [len(ids) for ids in output.rationale_token_ids]
    assert {1, 3, LIMIT} <= set(lengths)
    forced = output.is_forced.tolist()
    assert {forced[i] for i, length in enumerate(lengths) if length == LIMIT} == {True, False}
    assert not any(forced[i] for i, length in enumerate(lengths) if length < LIMIT)


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_embedding_does_not_depend_on_batch_mates_or_batch_size(
    encoders, processor, prompts, read_offset
):
    encoder = encoders[read_offset]
    whole = run(encoder, processor(prompts, "left"), FirstTokenGate())
    assert set(whole.thinks.tolist()) == {True, False}
    for rows in ([0], [5], [6, 1], [4, 2, 0], list(range(len(prompts)))[::-1]):
        part = run(encoder, processor([prompts[i] for i in rows], "left"), FirstTokenGate())
        assert part.rationale_token_ids == [whole.rationale_token_ids[i] for i in rows]
        assert torch.equal(part.thinks, whole.thinks[rows])
        assert torch.equal(part.is_forced, whole.is_forced[rows])
        assert close(part.embeddings, whole.embeddings[rows])


def test_a_right_padded_pass_over_what_was_written_gives_the_same(encoders, processor, prompts):
    encoder = encoders[-1]
    output = run(encoder, processor(prompts, "left"), AlwaysGate())
    rows = [
        [*processor([t]).input_ids[0].tolist(), *ids, encoder.emb_token_id]
        for t, ids in zip(prompts, output.rationale_token_ids, strict=True)
    ]
    pictures = processor(prompts)
    shape = (len(rows), max(map(len, rows)))
    inputs = EncoderInput(
        torch.zeros(shape).long(),
        torch.zeros(shape).long(),
        torch.zeros(shape).long(),
        torch.full(shape, -100),
        pictures.pixel_values,
        pictures.image_grid_thw,
    )
    for i, row in enumerate(rows):
        inputs.input_ids[i, : len(row)] = torch.tensor(row)
        inputs.attention_mask[i, : len(row)] = 1
        inputs.labels[i, len(row) - 1] = encoder.emb_token_id
    inputs.mm_token_type_ids[inputs.input_ids == processor.image_token_id] = 1
    with torch.no_grad():
        assert close(encoder(inputs).embedding, output.embeddings)


def test_a_bypass_is_the_direct_embedding(encoders, processor, prompts):
    encoder, inputs = encoders[-1], processor(prompts, "left")
    output = run(encoder, inputs)
    turns = [replace(turn, response="", end="<|emb|>") for turn in prompts]
    with torch.no_grad():
        direct = encoder(processor(turns))
    assert close(output.embeddings, direct.embedding)
    assert close(direct.prompt_state, direct.embedding)
    assert output.rationale_token_ids == [[]] * len(prompts)
    assert not output.thinks.any()
    assert not output.is_forced.any()
    thought = run(encoder, inputs, AlwaysGate())  # the control: thinking moves the embedding
    assert (thought.embeddings - output.embeddings).abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_an_overrun_is_cut_at_the_limit_and_counted(
    encoders, processor, prompts, encode_alone, read_offset, limit
):
    encoder, inputs = encoders[read_offset], processor(prompts, "left")
    long = run(encoder, inputs, AlwaysGate(), limit=LIMIT)
    cut = run(encoder, inputs, AlwaysGate(), limit=limit)
    overruns = [len(ids) > limit for ids in long.rationale_token_ids]
    assert cut.is_forced.tolist() == overruns
    assert any(overruns)
    assert cut.rationale_token_ids == [ids[:limit] for ids in long.rationale_token_ids]
    for row, turn in enumerate(prompts):
        expected = encode_alone(encoder, turn, cut.rationale_token_ids[row])
        assert close(cut.embeddings[row], expected)


def test_the_long_thoughts_end_at_different_lengths(alone):
    """What the tests of many rest on."""
    lengths = [len(ids) for ids in alone[-1].rationales]
    assert len(set(lengths)) > 10
    assert lengths.count(1) > 3
    assert 10 < sorted(lengths)[-6] < LONG_LIMIT
    assert 1 < sum(alone[-1].is_forced) < 5
    assert alone[0].rationales == alone[-1].rationales


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_written_is_what_greedy_decoding_with_the_librarys_caches_writes(
    thinkers, processor, many, alone, read_offset, kind
):
    """One query at a time, whose positions, too, are those of the library."""
    encoder = thinkers[read_offset]
    output = run(encoder, processor(many, "left"), AlwaysGate(), LONG_LIMIT)
    check_rows(output, alone[read_offset], range(len(many)))
    for row, turn in enumerate(many):
        cache = DynamicCache()
        if kind == "static":
            config = encoder.model.get_base_model().config.get_text_config()
            cache = StaticCache(config, max_cache_len=128)
        ids, is_forced, state = think_alone(encoder, processor([turn]), LONG_LIMIT, cache)
        assert (ids, is_forced) == (output.rationale_token_ids[row], bool(output.is_forced[row]))
        assert close(output.embeddings[row], state)


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize("slots", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_embedding_does_not_depend_on_parts_order_padding_or_slots(
    thinkers, processor, many, alone, read_offset, slots, layout
):
    order = random.Random(f"{slots} {layout}").sample(range(len(many)), len(many))
    sides = ("left", "right") if slots % 2 else ("right", "left")
    parts = render_parts(processor, many, order, LAYOUTS[layout], sides)
    output = run(thinkers[read_offset], parts, AlwaysGate(), LONG_LIMIT, slots=slots)
    assert output.thinks.all()
    check_rows(output, alone[read_offset], order)


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize(
    "gate", [NEVER, FirstTokenGate(), SomeGate({0, 2, 3, 10, 21}), SomeGate({7})]
)
def test_some_of_many_think(thinkers, processor, many, alone, read_offset, gate):
    order = random.Random(gate.name).sample(range(len(many)), len(many))
    parts = render_parts(processor, many, order, LAYOUTS["uneven"])
    ids = torch.tensor(order)
    output = run(thinkers[read_offset], parts, gate, LONG_LIMIT, slots=3, ids=ids)
    check_rows(output, alone[read_offset], order)
    whole = run(thinkers[read_offset], processor(many), gate, LONG_LIMIT)
    assert torch.equal(output.thinks, whole.thinks[order])
    assert torch.equal(output.emb_is_first, whole.emb_is_first[order])
    if isinstance(gate, FirstTokenGate):
        assert 5 < output.thinks.sum() < 19
    if isinstance(gate, SomeGate):
        assert {order[i] for i in output.thinks.nonzero().flatten()} == gate.query_ids


def test_what_the_gate_sees_belongs_to_the_query(thinkers, processor, many):
    encoder = thinkers[-1]
    router = DifficultyRouter(encoder.hidden_size)
    prior = torch.rand(len(many))
    order = random.Random(0).sample(range(len(many)), len(many))
    parts = render_parts(processor, many, order, LAYOUTS["uneven"])
    output = run(encoder, parts, TaskPriorGate(), LIMIT, router, prior[order])
    assert torch.equal(output.thinks, prior[order] >= 0.5)
    whole = run(encoder, processor(many), NEVER, LIMIT, router)
    assert close(output.think_probability, whole.think_probability[order])
    assert len(set(whole.think_probability.tolist())) == len(many)


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize("slots", [1, 5, 128])
def test_a_prepared_encoder_writes_and_embeds_the_same(
    thinkers, processor, many, alone, read_offset, slots
):
    """With the adapter merged, and read in fewer operations."""
    encoder = copy.deepcopy(thinkers[read_offset])
    encoder.prepare_inference()
    order = random.Random(slots).sample(range(len(many)), len(many))
    parts = render_parts(processor, many, order, LAYOUTS["uneven"])
    output = run(encoder, parts, AlwaysGate(), LONG_LIMIT, slots=slots)
    check_rows(output, alone[read_offset], order)


@pytest.fixture
def events(monkeypatch):
    """Counts what happens in the decode cache, of which little is to spare."""
    monkeypatch.setattr("tracelib.models.decode_cache._SPARE_COLUMNS", 4)
    seen, entering = Counter(), []
    add_rows, drop_rows, fit = DecodeCache.add_rows, DecodeCache.drop_rows, DecodeCache._fit

    def count_added(cache, source, rows, attention_mask):
        seen["refill"] += cache.num_active > 0
        entering.append(cache.num_active)
        add_rows(cache, source, rows, attention_mask)
        entering.pop()

    def count_dropped(cache, goes):
        order = drop_rows(cache, goes)
        seen["hole filled"] += bool((order != torch.arange(len(order))).any())
        return order

    def count_grown(cache, longest):
        columns = cache.num_columns
        fit(cache, longest)
        if not entering:
            seen["grown by a step"] += cache.num_columns > columns
        elif entering[-1]:
            seen["grown by a prompt"] += cache.num_columns > columns

    monkeypatch.setattr(DecodeCache, "add_rows", count_added)
    monkeypatch.setattr(DecodeCache, "drop_rows", count_dropped)
    monkeypatch.setattr(DecodeCache, "_fit", count_grown)
    return seen


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_rows_enter_and_leave_a_cache_that_grows_and_moves(
    thinkers, processor, many, alone, read_offset, events
):
    """The longest prompts come after the shortest, and so need more room than there is."""
    order = processor(many).attention_mask.sum(-1).argsort().tolist()
    order = order[:8] + order[:7:-1]
    parts = render_parts(processor, many, order, [2, 6, 16])
    output = run(thinkers[read_offset], parts, AlwaysGate(), LONG_LIMIT, slots=6)
    check_rows(output, alone[read_offset], order)
    assert events["refill"] > 5
    assert events["hole filled"] > 5
    assert events["grown by a step"] > 0
    assert events["grown by a prompt"] > 0


def test_positions_without_the_pictures_share_are_wrong(
    thinkers, processor, many, alone, monkeypatch
):
    """The control: a picture takes fewer positions than tokens, and decoding has to know."""
    encoder = thinkers[-1]
    compute_positions = encoder.compute_positions
    inputs = processor(many, "left")
    shift = compute_positions(inputs)[1].flatten()

    def forget_pictures(inputs):
        positions, deltas = compute_positions(inputs)
        return positions, torch.zeros_like(deltas)

    monkeypatch.setattr(encoder, "compute_positions", forget_pictures)
    output = run(encoder, inputs, AlwaysGate(), LONG_LIMIT)
    for row, turn in enumerate(many):
        same = close(output.embeddings[row], alone[-1].thought[row], 1e-3)
        assert same == (shift[row] == 0), (row, turn.images)
    assert {bool(turn.images) for turn, moved in zip(many, shift, strict=True) if moved} == {True}
    assert (shift != 0).sum() > 5


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize(("dtype", "least_cosine"), [("float16", 0.9999), ("bfloat16", 0.999)])
def test_half_precision_stays_near_float32(
    make_encoder, thinkers, processor, many, encode_alone, read_offset, dtype, least_cosine
):
    encoder = make_thinker(make_encoder, 6, read_offset=read_offset, dtype=dtype)
    assert encoder.dtype == getattr(torch, dtype)
    router = DifficultyRouter(encoder.hidden_size)
    parts = render_parts(processor, many, range(len(many)), LAYOUTS["uneven"])
    output = run(encoder, parts, AlwaysGate(), LONG_LIMIT, router, slots=5)
    assert output.embeddings.dtype == output.think_probability.dtype == torch.float32
    for row, turn in enumerate(many):
        exact = encode_alone(thinkers[read_offset], turn, output.rationale_token_ids[row])
        cosine = torch.cosine_similarity(output.embeddings[row], exact, dim=0)
        assert cosine > least_cosine, (row, cosine)


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_without_thought_a_prompt_is_read_once(
    thinkers, processor, many, alone, read_offset, monkeypatch
):
    encoder, read = thinkers[read_offset], []
    run_backbone = encoder.run_backbone

    def count_read(inputs, *others):
        read.append(inputs.input_ids.shape)
        return run_backbone(inputs, *others)

    monkeypatch.setattr(encoder, "run_backbone", count_read)
    parts = render_parts(processor, many, range(len(many)), LAYOUTS["uneven"])
    output = run(encoder, parts, NEVER, LONG_LIMIT)
    check_rows(output, alone[read_offset], range(len(many)))
    prompts = [part.input_ids.shape for part in parts]
    closing = [(len(many), 1)] if read_offset == 0 else []
    assert sorted(read) == sorted([*prompts, *closing])


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize("slots", [2, 64])
def test_all_thoughts_can_be_cut(make_encoder, processor, many, encode_alone, read_offset, slots):
    encoder = make_encoder(read_offset=read_offset)
    rows = [p for name, p in encoder.named_parameters() if "trainable_tokens" in name]
    rows[0].data.zero_()  # a logit of 0 is never the largest
    parts = render_parts(processor, many, range(len(many)), LAYOUTS["uneven"])
    output = run(encoder, parts, AlwaysGate(), LIMIT, slots=slots)
    assert output.is_forced.all()
    assert {len(ids) for ids in output.rationale_token_ids} == {LIMIT}
    for row, turn in enumerate(many):
        expected = encode_alone(encoder, turn, output.rationale_token_ids[row])
        assert close(output.embeddings[row], expected)


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_a_thought_that_ends_at_the_limit_itself_is_not_cut(
    thinkers, processor, many, alone, read_offset, monkeypatch
):
    """Whatever the model would write behind its embedding token; here never another one."""
    encoder, last_tokens = thinkers[read_offset], []
    run_backbone, predict_tokens = encoder.run_backbone, encoder.predict_tokens

    def note_tokens(inputs, *others):
        last_tokens[:] = [inputs.input_ids[:, -1]]
        return run_backbone(inputs, *others)

    def close_once(states):
        logits = predict_tokens(states)
        logits[last_tokens[0] == encoder.emb_token_id, encoder.emb_token_id] = -torch.inf
        return logits

    monkeypatch.setattr(encoder, "run_backbone", note_tokens)
    monkeypatch.setattr(encoder, "predict_tokens", close_once)
    lengths = torch.tensor([len(ids) for ids in alone[read_offset].rationales])
    inputs = processor(many, "left")
    for limit in sorted({*lengths.tolist()} - {LONG_LIMIT}):
        output = run(encoder, inputs, AlwaysGate(), limit)
        assert torch.equal(output.is_forced, lengths > limit)


def test_no_prompts_give_no_rows(encoders):
    output = run(encoders[-1], [])
    assert output.embeddings.shape == output.direct_embeddings.shape == (0, 32)
    assert output.rationale_token_ids == []
    for values in (output.thinks, output.think_probability, output.emb_is_first, output.is_forced):
        assert values.shape == (0,)


def test_first_token_gate_thinks_where_the_embedding_token_is_not_first(
    encoders, processor, prompts
):
    encoder = encoders[-1]
    output = run(encoder, processor(prompts, "left"), FirstTokenGate())
    for row, turn in enumerate(prompts):
        inputs = processor([turn])
        with torch.no_grad():
            states = encoder.run_backbone(inputs, encoder.compute_positions(inputs)[0])
            first = int(encoder.predict_tokens(states[0, -1]).argmax())
        assert bool(output.thinks[row]) == (first != encoder.emb_token_id)
        assert output.rationale_token_ids[row][:1] == [first] * bool(output.thinks[row])


def test_head_gate_follows_the_routers_probability(encoders, processor, prompts):
    encoder, inputs = encoders[-1], processor(prompts, "left")
    router = DifficultyRouter(encoder.hidden_size)
    direct = run(encoder, inputs, router=router)
    expected = torch.sigmoid(router(direct.embeddings))
    assert close(direct.think_probability, expected)
    threshold = expected.sort().values[3].item()
    output = run(encoder, inputs, HeadGate(threshold - 1e-4), router=router)
    assert torch.equal(output.thinks, expected > threshold - 1e-4)
    assert output.thinks.sum() == 4
    assert run(encoder, inputs, HeadGate(0.0), router=router).thinks.all()
    assert not run(encoder, inputs, HeadGate(1.1), router=router).thinks.any()
    assert run(encoder, inputs).think_probability.isnan().all()  # without a router nobody knows


def test_task_prior_gate_follows_the_share_of_hard_queries(encoders, processor, prompts):
    prior = torch.tensor([0.0, 0.49, 0.5, 1.0, 0.2, 0.7, 0.0])
    output = run(encoders[-1], processor(prompts, "left"), TaskPriorGate(), prior=prior)
    assert output.thinks.tolist() == [False, False, True, True, False, True, False]


@pytest.mark.parametrize("name", ["max_rationale_tokens", "decode_batch_size"])
def test_a_size_below_one_is_refused(encoders, name):
    sizes = {"max_rationale_tokens": 1, "decode_batch_size": 1, name: 0}
    with pytest.raises(ValueError, match=rf"{name} is 0, must be at least 1 \(model\.{name}\)"):
        ReasoningEngine(encoders[-1], None, **sizes)


@pytest.mark.parametrize(("priors", "ids"), [(6, 7), (7, 6), (8, 8)])
def test_arguments_of_different_lengths_are_refused(encoders, processor, prompts, priors, ids):
    parts = render_parts(processor, prompts, range(7), [3, 4])
    with pytest.raises(ValueError, match=f"7 prompts, {priors} task priors, {ids} query ids"):
        run(encoders[-1], parts, prior=torch.zeros(priors), ids=torch.arange(ids))


def test_one_engine_again_and_again(thinkers, processor, many, alone, monkeypatch):
    """Its memory serves the next call, whatever became of the last one, and shows in no digit."""
    encoder = copy.deepcopy(thinkers[-1])
    encoder.prepare_inference()
    engine = ReasoningEngine(encoder, None, LONG_LIMIT, 5)

    def arguments(turns):
        ids = torch.arange(len(turns))
        return [processor(turns)], AlwaysGate(), torch.zeros(len(ids)), ids

    def embed(turns):
        return engine.embed_queries(*arguments(turns))

    whole = range(len(many))
    with torch.inference_mode():
        few = embed(many[3:5])
        check_rows(few, alone[-1], [3, 4])
        first = embed(many)
    check_rows(first, alone[-1], whole)
    assert torch.equal(embed(many).embeddings, first.embeddings)
    assert torch.equal(embed(many[3:5]).embeddings, few.embeddings)
    with monkeypatch.context() as context:
        context.setattr(type(engine.encoder), "predict_tokens", broken_after(5, encoder))
        with pytest.raises(RuntimeError, match="no more tokens"):
            embed(many)
    check_rows(embed(many), alone[-1], whole)
    for dtype, num_slots in ((torch.bfloat16, 5), (torch.float32, 5), (torch.float32, 2)):
        encoder.to(dtype)
        engine.decode_batch_size = num_slots
        fresh = ReasoningEngine(encoder, None, LONG_LIMIT, num_slots)
        again, expected = (e.embed_queries(*arguments(many)) for e in (engine, fresh))
        assert again.rationale_token_ids == expected.rationale_token_ids
        assert torch.equal(again.embeddings, expected.embeddings)
    assert engine._cache is not None
    assert copy.deepcopy(engine)._cache is None


def test_a_call_within_a_call_has_memory_of_its_own(thinkers, processor, many, alone):
    engine = ReasoningEngine(thinkers[-1], None, LONG_LIMIT, 5)

    class Asking(AlwaysGate):
        def decide(self, features):
            size = len(many)
            asked.append(
                engine.embed_queries(
                    [processor(many)], AlwaysGate(), torch.zeros(size), torch.arange(size)
                )
            )
            return super().decide(features)

    asked = []
    parts = [processor(many[:4]), processor(many[4:])]
    size = len(many)
    found = engine.embed_queries(parts, Asking(), torch.zeros(size), torch.arange(size))
    assert len(asked) == 2
    for output in (found, *asked):
        check_rows(output, alone[-1], range(size))


def broken_after(num_calls, encoder):
    """Return a `predict_tokens` that fails after some calls."""
    predict, calls = type(encoder).predict_tokens, []

    def run(self, hidden):
        calls.append(1)
        if len(calls) > num_calls:
            raise RuntimeError("no more tokens")
        return predict(self, hidden)

    return run
