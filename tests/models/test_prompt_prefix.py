from dataclasses import replace

import pytest
import torch

from tests.reference.thinking import think_alone
from tracelib.data.collator import Turn
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.models.prompt_prefix import (
    drop_prefix,
    find_common_prefix,
    read_prefix,
    repeat_cache,
)
from tracelib.models.router import DifficultyRouter
from tracelib.prompts import Template

SYSTEM = "Work step by step if the query is hard."


def make_turns(turns, system):
    """Return the turns with a system prompt, pictures as they were."""
    return [
        Turn([{"role": "system", "content": system}, *turn.messages], turn.images) for turn in turns
    ]


@pytest.fixture(scope="module")
def instructed(prompts):
    return make_turns(prompts, SYSTEM)


def decode(processor, ids):
    return processor.tokenizer.decode(ids)


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1] * 7])
def test_prefix_is_the_system_prompt_and_the_head_of_the_turn(processor, instructed, sizes):
    rest, parts = list(instructed), []
    for size, side in zip(sizes, ("left", "right") * 4, strict=False):
        parts.append(processor(rest[:size], side))
        rest = rest[size:]
    prefix = find_common_prefix(parts)
    text = decode(processor, prefix)
    assert text.startswith("<|im_start|>system")
    assert SYSTEM in text
    # the next token is a picture for some and text for others
    assert text.endswith("<|im_start|>user\n")


def test_prefix_ends_where_prompts_differ(processor, instructed):
    other = make_turns(
        [replace(instructed[0], messages=instructed[0].messages[1:])], "Work alone, now."
    )
    mixed = processor([*instructed, *other], "left")
    whole = find_common_prefix([processor(instructed, "left")])
    # they share less than is worth a pass
    assert len(find_common_prefix([mixed])) == 0 < len(whole)
    near = make_turns(instructed[:1], SYSTEM[:-2])
    shorter = find_common_prefix([processor(instructed, "left"), processor(near, "right")])
    assert 0 < len(shorter) < len(whole)
    assert torch.equal(shorter, whole[: len(shorter)])


def test_prefix_leaves_each_prompt_a_token(processor):
    turn = Turn(Template(system=SYSTEM).build_messages(0, "Find it.", "red", -1), [])
    prompts = processor([turn] * 5, "left")
    assert len(find_common_prefix([prompts])) == prompts.input_ids.shape[1] - 1


def test_prefix_ends_before_a_picture(processor, instructed):
    pictured = [turn for turn in instructed if turn.images][:1] * 5
    prompts = processor(pictured, "left")
    prefix = find_common_prefix([prompts])
    is_picture = prompts.mm_token_type_ids[0] != 0
    assert len(prefix) == int(is_picture.int().argmax())


def test_few_prompts_and_short_prefixes_are_not_worth_a_pass(processor, prompts, instructed):
    assert len(find_common_prefix([processor(instructed[:3], "left")])) == 0
    assert len(find_common_prefix([processor(instructed[:4], "left")])) > 0
    short = find_common_prefix([processor(prompts, "left")])
    assert len(short) == 0


@pytest.mark.parametrize("num_tokens", [0, 3, 10])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_left_is_the_end_of_each_prompt(processor, instructed, side, num_tokens):
    prompts = processor(instructed, side)
    numbers = torch.arange(prompts.input_ids.numel()).view_as(prompts.input_ids)
    rest, positions = drop_prefix(prompts, torch.stack([numbers, -numbers]), num_tokens)
    assert rest.attention_mask.shape[1] == num_tokens + rest.input_ids.shape[1]
    assert rest.attention_mask[:, :num_tokens].all()
    for row, mask in enumerate(prompts.attention_mask.bool()):
        is_token = rest.attention_mask[row, num_tokens:].bool()
        length = int(is_token.sum())
        assert is_token[:length].all()
        for name in ("input_ids", "mm_token_type_ids", "labels"):
            expected = getattr(prompts, name)[row][mask][num_tokens:]
            assert torch.equal(getattr(rest, name)[row, :length], expected)
        assert torch.equal(positions[0, row, :length], numbers[row][mask][num_tokens:])
        assert torch.equal(positions[1], -positions[0])
        # no picture is asked for twice
        assert not rest.mm_token_type_ids[row, length:].any()


def test_cache_of_a_prefix_is_repeated(make_encoder, processor, instructed):
    encoder = make_encoder()
    with torch.no_grad():
        prefix = find_common_prefix([processor(instructed, "left")])
        cache = read_prefix(encoder, prefix)
        repeated = repeat_cache(cache, 5)
    assert repeated.get_seq_length() == len(prefix)
    for one, many in zip(cache.layers, repeated.layers, strict=True):
        assert torch.equal(many.keys, one.keys.repeat(5, 1, 1, 1))
        assert torch.equal(many.values, one.values.repeat(5, 1, 1, 1))
    assert repeat_cache(read_prefix(encoder, prefix[:0]), 5).get_seq_length() == 0


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize("sides", [("left", "left"), ("right", "left")])
def test_thoughts_and_embeddings_are_those_of_the_whole_prompt_alone(
    make_encoder, processor, instructed, encode_alone, read_offset, sides, monkeypatch
):
    encoder = make_encoder(read_offset=read_offset)
    router = DifficultyRouter(encoder.hidden_size)
    ids, prior = torch.arange(7), torch.zeros(7)
    parts = [processor(instructed[:4], sides[0]), processor(instructed[4:], sides[1])]
    engine, lengths = ReasoningEngine(encoder, router, 5, 3), []
    read = encoder.run_backbone

    def count(inputs, *args):
        lengths.append(inputs.input_ids.shape[1])
        return read(inputs, *args)

    monkeypatch.setattr(encoder, "run_backbone", count)
    outputs = {g: engine.embed_queries(parts, g, prior, ids) for g in (NeverGate(), AlwaysGate())}
    # the prefix was read once each, and left out of the rest
    prefix = len(find_common_prefix(parts))
    width = max(p.attention_mask.sum(-1).max() for p in parts)
    assert lengths[0] == prefix
    assert max(lengths[1:]) == width - prefix
    monkeypatch.undo()
    for gate, output in outputs.items():
        for row, turn in enumerate(instructed):
            thinks = isinstance(gate, AlwaysGate)
            thought = think_alone(encoder, processor([turn]), 5, None)[0] if thinks else []
            assert output.rationale_token_ids[row] == thought
            expected = encode_alone(encoder, turn, thought)
            assert (output.embeddings[row] - expected).abs().max() < 1e-5 * expected.abs().max()
