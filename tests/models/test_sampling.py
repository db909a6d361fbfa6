"""Tokens are drawn as the model weighs them, whatever else is in the batch."""

from bisect import bisect_right
from itertools import accumulate

import pytest
import torch

from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate, FirstTokenGate
from tracelib.models.sampling import Sampling

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.0, 1.1, -torch.inf])
LIMIT = 8


def draw(sampling, ids, logits=LOGITS):
    """Return one token per query and sample."""
    uniforms = sampling.draw_uniforms(ids, 1, CPU)[:, 0]
    return sampling.choose(logits.expand(len(uniforms), -1), uniforms)


def measure_chi_square(counts, shares):
    """Return the statistic over the outcomes that can happen; the others may not."""
    expected = shares * counts.sum()
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_tokens_come_as_often_as_softmax_says(temperature, seed):
    tokens = draw(Sampling(temperature, num_samples=2, seed=seed), torch.arange(4000))
    counts = torch.bincount(tokens, minlength=len(LOGITS))
    # 1 in 10,000 exceeds 23.5 with four degrees of freedom
    assert measure_chi_square(counts, torch.softmax(LOGITS / temperature, 0)) < 23.5
    wrong = torch.softmax(LOGITS / (1.3 * temperature), 0)
    assert measure_chi_square(counts, wrong) > 23.5  # the control


def test_a_temperature_near_zero_takes_the_likeliest_and_a_high_one_any_possible():
    ids = torch.arange(1000)
    assert (draw(Sampling(1e-3), ids) == 2).all()
    assert (draw(Sampling(), ids) == 2).all()
    counts = torch.bincount(draw(Sampling(1e4), ids), minlength=len(LOGITS))
    assert measure_chi_square(counts, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0.0])) < 23.5


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 1), (0.2499, 1), (0.25, 2), (0.4999, 2), (0.5, 4), (1 - 2**-24, 4)],
)
def test_a_number_picks_the_token_whose_share_it_falls_into(uniform, token):
    shares = torch.tensor([[0.0, 0.25, 0.25, 0.0, 0.5, 0.0]])
    assert Sampling(1.0).choose(shares.log(), torch.tensor([uniform])).item() == token
    assert Sampling(2.0).choose(2 * shares.log(), torch.tensor([uniform])).item() == token


def test_half_precision_logits_are_weighed_in_float32():
    logits = torch.zeros(1, 4096)
    picked = Sampling(1.0).choose(logits.bfloat16(), torch.tensor([1000.5 / 4096]))
    assert picked.item() == 1000


def test_what_is_drawn_depends_on_seed_query_and_sample_alone():
    ids = torch.tensor([7, 500_001, 3, 2**40])
    sampling = Sampling(1.0, num_samples=3, seed=4)
    whole = sampling.draw_uniforms(ids, 20, CPU)
    assert whole.shape == (12, 20)
    assert 0 <= whole.min() < 0.05 < 0.95 < whole.max() < 1
    for row, query_id in enumerate(ids):  # whatever comes beside or before it
        alone = sampling.draw_uniforms(query_id[None], 20, CPU)
        assert torch.equal(whole[3 * row : 3 * row + 3], alone)
        single = Sampling(0.2, seed=4).draw_uniforms(query_id[None], 20, CPU)
        assert torch.equal(single, alone[:1])
    assert len({tuple(row) for row in whole.tolist()}) == 12
    others = Sampling(1.0, num_samples=3, seed=5).draw_uniforms(ids, 20, CPU)
    assert (others != whole).any(-1).all()


def test_numbers_of_tokens_samples_and_queries_do_not_go_together():
    uniforms = Sampling(1.0, num_samples=2).draw_uniforms(torch.arange(2000), 4, CPU)
    pairs = torch.cat([uniforms[0::2], uniforms[1::2], uniforms[0::2].roll(1, 0)], 1)
    correlation = torch.corrcoef(pairs.T) - torch.eye(12)
    assert correlation.abs().max() < 5 / 2000**0.5
    assert (uniforms.mean(0) - 0.5).abs().max() < 5 / (12 * 4000) ** 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1, must be finite and at least 0"),
        ({"temperature": float("nan")}, "must be finite"),
        ({"temperature": float("inf")}, "must be finite"),
        ({"temperature": 1.0, "num_samples": 0}, "num_samples is 0, must be at least 1"),
        ({"num_samples": 3}, "3 samples at temperature 0 are all the same"),
    ],
)
def test_a_value_out_of_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


@pytest.fixture(scope="module")
def encoders(make_encoder):
    """By read offset: encoders that often close their thoughts."""
    found = {}
    for read_offset in (-1, 0):
        found[read_offset] = make_encoder(read_offset=read_offset)
        rows = [
            p for name, p in found[read_offset].named_parameters() if "trainable_tokens" in name
        ]
        torch.manual_seed(6)
        rows[0].data.copy_(1.5 * torch.randn(rows[0].shape))
    return found


def run(encoder, parts, ids, sampling, gate=None, slots=128):
    zeros = torch.zeros(len(ids))
    engine = ReasoningEngine(encoder, None, LIMIT, slots)
    return engine.embed_queries(parts, gate or AlwaysGate(), zeros, torch.tensor(ids), sampling)


def draw_alone(encoder, processor, turn, uniforms, temperature):
    """Return a rationale, token by token from plain passes over the row, in plain Python."""
    inputs, written = processor([turn]), []
    prompt, types = inputs.input_ids, inputs.mm_token_type_ids
    while len(written) < LIMIT:
        inputs.input_ids = torch.cat([prompt, torch.tensor([written]).long()], 1)
        inputs.attention_mask = torch.ones_like(inputs.input_ids)
        inputs.mm_token_type_ids = torch.nn.functional.pad(types, (0, len(written)))
        with torch.no_grad():
            states = encoder.run_backbone(inputs, encoder.compute_positions(inputs)[0])
            logits = encoder.predict_tokens(states[0, -1]).double()
        if not written:
            logits[encoder.emb_token_id] = -torch.inf
        edges = list(accumulate(torch.softmax(logits / temperature, 0).tolist()))
        token = bisect_right(edges, uniforms[len(written)] * edges[-1])
        if token == encoder.emb_token_id:
            break
        written.append(token)
    return written


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_samples_are_drawn_from_the_model_and_embedded_by_their_own_thought(
    encoders, processor, prompts, encode_alone, read_offset
):
    encoder, sampling = encoders[read_offset], Sampling(0.7, num_samples=3, seed=1)
    ids = [10 * i for i in range(len(prompts))]
    output = run(encoder, [processor(prompts, "left")], ids, sampling)
    uniforms = sampling.draw_uniforms(torch.tensor(ids), LIMIT + 1, CPU).tolist()
    assert len(output.embeddings) == len(output.rationale_token_ids) == 3 * len(prompts)
    lengths = [len(written) for written in output.rationale_token_ids]
    assert 0 < output.is_forced.sum() < len(lengths)
    assert len(set(lengths)) > 4
    for row, written in enumerate(output.rationale_token_ids):
        turn = prompts[row // 3]
        assert written == draw_alone(encoder, processor, turn, uniforms[row], 0.7)
        expected = encode_alone(encoder, turn, written)
        assert (output.embeddings[row] - expected).abs().max() < 1e-5 * expected.abs().max()
    for first in range(0, len(lengths), 3):
        samples = {tuple(ids) for ids in output.rationale_token_ids[first : first + 3]}
        assert len(samples) == 3
        assert (output.direct_embeddings[first] == output.direct_embeddings[first + 1]).all()


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_samples_do_not_depend_on_batch_mates(encoders, processor, prompts, slots):
    encoder, sampling = encoders[-1], Sampling(0.7, num_samples=3)
    ids = [10 * i for i in range(len(prompts))]
    whole = run(encoder, [processor(prompts, "left")], ids, sampling, FirstTokenGate())
    order = [5, 2, 6, 0, 3, 1, 4]
    parts = [processor([prompts[i] for i in part]) for part in (order[:1], order[1:5], order[5:])]
    output = run(encoder, parts, [ids[i] for i in order], sampling, FirstTokenGate(), slots)
    rows = [3 * i + sample for i in order for sample in range(3)]
    assert 0 < output.thinks.sum() < len(rows)
    assert torch.equal(output.thinks, whole.thinks[rows])
    assert torch.equal(output.emb_is_first, whole.emb_is_first[rows])
    assert torch.equal(output.is_forced, whole.is_forced[rows])
    assert output.rationale_token_ids == [whole.rationale_token_ids[i] for i in rows]
    difference = (output.embeddings - whole.embeddings[rows]).abs().max()
    assert difference < 1e-5 * whole.embeddings.abs().max()


def test_without_a_temperature_the_likeliest_is_written(encoders, processor, prompts):
    parts, ids = [processor(prompts, "left")], list(range(len(prompts)))
    greedy = run(encoders[-1], parts, ids, None)
    for sampling in (Sampling(), Sampling(seed=3), Sampling(1e-3)):
        output = run(encoders[-1], parts, ids, sampling)
        assert output.rationale_token_ids == greedy.rationale_token_ids
    warm = run(encoders[-1], parts, ids, Sampling(1.0))
    assert warm.rationale_token_ids != greedy.rationale_token_ids


def test_a_tiny_temperature_takes_the_most_likely_token():
    logits = torch.tensor([[1.0, 5.0, 2.0, -torch.inf]])
    assert Sampling(1e-39).choose(logits, torch.tensor([0.5])).tolist() == [1]
