"""The invariances of reason-then-embed: decoding step by step gives what one plain pass gives."""

from dataclasses import replace

import pytest
import torch

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
from tracelib.types import EncoderInput

LIMIT = 6
NEVER = NeverGate()
TOLERANCE = 1e-5


class SomeGate(Gate):
    """Thinks on the rows it is told to."""

    name = "some"

    def __init__(self, rows):
        self.rows = rows

    def decide(self, features):
        return torch.tensor([i in self.rows for i in range(len(features.emb_is_first))])


@pytest.fixture(scope="module")
def encoders(make_encoder):
    """By read offset: encoders that close their thoughts after different numbers of tokens."""
    found = {}
    for read_offset in (-1, 0):
        found[read_offset] = make_encoder(read_offset=read_offset)
        rows = [
            p for name, p in found[read_offset].named_parameters() if "trainable_tokens" in name
        ]
        torch.manual_seed(0)
        rows[0].data.normal_()
    return found


def run(encoder, prompts, gate=NEVER, limit=LIMIT, router=None, prior=None, slots=128):
    parts = prompts if isinstance(prompts, list) else [prompts]
    ids = torch.arange(sum(len(part.input_ids) for part in parts))
    prior = torch.zeros(len(ids)) if prior is None else prior
    return ReasoningEngine(encoder, router, limit, slots).embed_queries(parts, gate, prior, ids)


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


def test_written_is_what_greedy_decoding_writes(encoders, processor, prompts):
    """Token by token, each from a plain pass over the row alone; the first one is never the end."""
    encoder = encoders[-1]
    output = run(encoder, processor(prompts, "left"), AlwaysGate())
    for row, turn in enumerate(prompts):
        inputs = processor([turn])
        written: list[int] = []
        while len(written) < LIMIT:
            with torch.no_grad():
                states = encoder.run_backbone(inputs, encoder.compute_positions(inputs)[0])
                logits = encoder.predict_tokens(states[0, -1])
            if not written:
                logits[encoder.emb_token_id] = -torch.inf
            token = int(logits.argmax())
            if token == encoder.emb_token_id:
                break
            written.append(token)
            inputs = replace(
                inputs,
                input_ids=torch.cat([inputs.input_ids, torch.tensor([[token]])], 1),
                attention_mask=torch.cat([inputs.attention_mask, torch.tensor([[1]])], 1),
                mm_token_type_ids=torch.cat([inputs.mm_token_type_ids, torch.tensor([[0]])], 1),
            )
        assert output.rationale_token_ids[row] == written


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


def test_a_limit_below_one_is_refused(encoders):
    with pytest.raises(ValueError, match="max_rationale_tokens is 0, must be at least 1"):
        ReasoningEngine(encoders[-1], None, 0)
