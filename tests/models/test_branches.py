"""A prompt with two texts is each of them alone: their tokens, states, logits and gradients."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.conftest import EMB, SIZES
from tracelib.models.branches import add_thought_branch, extract_prompts, select_rows
from tracelib.models.rollout import pad_thoughts

THOUGHTS = ("blue star / moon", "", "red", "1 green heart.", "", "x", "a long one: swap top row")
FIELDS = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def tokens(processor):
    """The thoughts of all turns, padded with -1."""
    encode = processor.tokenizer.encode
    return pad_thoughts([torch.tensor(encode(t, add_special_tokens=False)) for t in THOUGHTS])


@pytest.fixture
def chunk(processor, answered):
    return processor(answered)


@pytest.fixture
def packed(chunk, tokens, processor):
    return add_thought_branch(chunk, tokens, processor.emb_token_id)


@pytest.fixture
def thinking(processor, answered):
    """The plain sequences that are read after the thoughts."""
    return processor([replace(t, response=w) for t, w in zip(answered, THOUGHTS, strict=True)])


def list_rows(inputs, is_kept):
    return [
        row[kept].tolist()
        for row, kept in zip(inputs.input_ids, is_kept & (inputs.attention_mask == 1), strict=True)
    ]


def test_both_texts_are_what_the_renderer_makes_of_them(packed, chunk, thinking):
    everything = torch.ones_like(chunk.attention_mask).bool()
    assert list_rows(packed, packed.branches != 2) == list_rows(chunk, everything)
    everything = torch.ones_like(thinking.attention_mask).bool()
    assert list_rows(packed, packed.branches != 1) == list_rows(thinking, everything)


def test_only_the_first_text_has_labels(packed, chunk):
    is_target = packed.labels != -100
    assert torch.equal(is_target, packed.branches == 1)
    assert torch.equal(packed.labels[is_target], packed.input_ids[is_target])
    assert torch.equal(packed.labels[:, : chunk.labels.shape[1]], chunk.labels)


def test_rows_are_packed_without_gaps_and_padding_is_no_picture(packed, processor):
    lengths = packed.attention_mask.sum(-1)
    assert int(lengths.max()) == packed.input_ids.shape[1]
    is_real = torch.arange(packed.input_ids.shape[1]) < lengths[:, None]
    assert torch.equal(packed.attention_mask, is_real.long())
    image = packed.input_ids == processor.image_token_id
    assert torch.equal(packed.mm_token_type_ids, image.long())
    assert not (packed.branches[~is_real]).any()


def test_prompts_are_what_the_renderer_makes_of_them(processor, chunk, prompts):
    found, expected = extract_prompts(chunk), processor(prompts)
    for name in ("attention_mask", "labels", "pixel_values", "image_grid_thw"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    real = expected.attention_mask == 1
    for name in ("input_ids", "mm_token_type_ids"):
        assert torch.equal(getattr(found, name)[real], getattr(expected, name)[real]), name


def test_any_rows_come_with_their_pictures(processor, answered, chunk):
    for kept in product([False, True], repeat=len(SIZES)):
        if not any(kept):
            continue
        found = select_rows(chunk, torch.tensor(kept))
        expected = processor(
            [turn for turn, is_kept in zip(answered, kept, strict=True) if is_kept]
        )
        width = expected.input_ids.shape[1]
        for name in FIELDS:
            assert torch.equal(getattr(found, name)[:, :width], getattr(expected, name)), kept
        assert not found.attention_mask[:, width:].any()
        if expected.pixel_values is None:
            assert found.pixel_values is None
            assert found.image_grid_thw is None
        else:
            assert torch.equal(found.pixel_values, expected.pixel_values)
            assert torch.equal(found.image_grid_thw, expected.image_grid_thw)


@pytest.mark.parametrize("read_offset", [-1, 0])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_text_is_encoded_as_if_alone(
    make_encoder, packed, chunk, thinking, read_offset, attention
):
    encoder = make_encoder(read_offset=read_offset, attention=attention)
    with torch.no_grad():
        both, texts, thoughts = encoder(packed), encoder(chunk), encoder(thinking)
        embedded = encoder.embed(packed)
    for embedding in (both.embedding, embedded):
        torch.testing.assert_close(embedding, thoughts.embedding, atol=TOLERANCE, rtol=TOLERANCE)
    for name in ("lm_logits", "lm_targets", "prompt_state"):
        found, expected = getattr(both, name), getattr(texts, name)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(texts.embedding, thoughts.embedding, atol=1e-2)


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_neither_text_feels_the_other(make_encoder, packed, chunk, tokens, processor, read_offset):
    encoder = make_encoder(read_offset=read_offset)
    is_text = (packed.branches == 1) & (packed.input_ids != processor.emb_token_id)
    changed_text = replace(packed, input_ids=packed.input_ids + 3 * is_text)
    other = torch.where(tokens >= 0, tokens + 3, tokens)
    changed_thought = add_thought_branch(chunk, other, processor.emb_token_id)
    with torch.no_grad():
        before, after_text, after_thought = map(encoder, (packed, changed_text, changed_thought))
    assert torch.equal(before.embedding, after_text.embedding)
    assert not torch.allclose(before.lm_logits, after_text.lm_logits, atol=1e-2)
    assert torch.equal(before.lm_logits, after_thought.lm_logits)
    assert not torch.allclose(before.embedding, after_thought.embedding, atol=1e-2)


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_gradients_are_those_of_both_sequences(make_encoder, packed, chunk, thinking, read_offset):
    encoder = make_encoder(read_offset=read_offset)
    weights = [p for p in encoder.parameters() if p.requires_grad]
    torch.manual_seed(1)
    pull = torch.randn(len(SIZES), encoder.hidden_size)

    def differentiate(embedding, output):
        loss = (embedding * pull).sum() + cross_entropy(output.lm_logits, output.lm_targets)
        return torch.autograd.grad(loss, weights, allow_unused=True)

    both = encoder(packed)
    found = differentiate(both.embedding, both)
    expected = differentiate(encoder(thinking).embedding, encoder(chunk))
    leaked = differentiate(encoder(chunk).embedding, encoder(chunk))
    scale = max(float(g.abs().max()) for g in expected if g is not None)
    gaps = [
        max(
            float((a - b).abs().max())
            for a, b in zip(grads, expected, strict=True)
            if a is not None and b is not None
        )
        for grads in (found, leaked)
    ]
    assert gaps[0] < TOLERANCE * scale
    assert gaps[1] > 1e-2 * scale


def test_the_embedding_token_of_the_recipe_closes_the_thought(packed, processor):
    emb = processor.tokenizer.convert_tokens_to_ids(EMB)
    for ids, branches in zip(packed.input_ids, packed.branches, strict=True):
        for branch in (1, 2):
            own = ids[branches == branch].tolist()
            assert own[-1] == emb
            assert own.count(emb) == 1


def test_pictures_of_one_size_need_no_grid(processor, answered):
    chunk = processor([answered[i] for i in (0, 1, 1, 3, 1)])  # with 0, 1, 1, 0 and 1 pictures
    num = len(chunk.image_grid_thw)
    pictures = torch.arange(num).float()[:, None]
    found = select_rows(
        replace(chunk, pixel_values=pictures, image_grid_thw=None),
        torch.tensor([True, False, True, True, True]),
    )
    assert found.pixel_values.flatten().tolist() == [1, 2]
    assert found.image_grid_thw is None
