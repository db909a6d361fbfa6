"""Fewer operations give the states of transformers' own, whatever is read and however."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from tests.tiny_backbones import FAMILIES
from tracelib.models.backbone import LoRA
from tracelib.models.encoder import Encoder
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate
from tracelib.models.lean_forward import LeanForward, install_lean_forward

TOLERANCE = 1e-5


def close(a, b, tolerance=TOLERANCE):
    return (a - b).abs().max() < tolerance * b.abs().max()


@pytest.fixture(scope="module", params=["qwen2_5_vl", *FAMILIES])
def backbone(request, tiny_backbone, other_backbone):
    return tiny_backbone if request.param == "qwen2_5_vl" else other_backbone(request.param)


@pytest.fixture(scope="module")
def decoder(backbone):
    """A language model; norms and biases, which are 1 and 0 when new, are random."""
    torch.manual_seed(0)
    encoder = Encoder(str(backbone), lora=None).eval()
    model = encoder.model.get_decoder()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.3)
    return model


def make_head(decoder):
    return nn.Linear(decoder.config.hidden_size, 90, bias=False).to(decoder.dtype)


@pytest.fixture(scope="module")
def lean(decoder):
    return LeanForward(decoder, make_head(decoder))


@pytest.fixture(params=[0, 2**20], ids=["sdpa", "products"])
def attention(request, monkeypatch):
    """Have several tokens a row attend by one or the other."""
    monkeypatch.setattr("tracelib.models.lean_forward.MOST_SCORES", request.param)


def read(forward, ids, mask, cache=None, last=None, **options):
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        return forward(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        ).last_hidden_state


def make_tokens(num_rows=4, num_tokens=11, paddings=(0, 3, 0, 5)):
    """Return tokens and a mask; a padding is on the left of even rows, on the right of others."""
    torch.manual_seed(1)
    ids = torch.randint(5, 90, (num_rows, num_tokens))
    mask = torch.ones_like(ids)
    for row, padding in enumerate(paddings[:num_rows]):
        mask[row, :padding] = row % 2
        mask[row, num_tokens - padding :] = 1 - row % 2
    return ids, mask


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("paddings", [(0, 0, 0, 0), (0, 3, 2, 5)])
def test_whole_sequences(decoder, lean, paddings):
    ids, mask = make_tokens(paddings=paddings)
    expected, found = (read(forward, ids, mask) for forward in (decoder.forward, lean))
    assert close(found[mask.bool()], expected[mask.bool()])
    other = read(lean, ids.flip(1), mask)  # the control
    assert not close(other[mask.bool()], expected[mask.bool()], 1e-2)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("last", [(10, 10, 10, 10), (0, 4, 7, 10)])
@pytest.mark.parametrize("paddings", [(0, 0, 0, 0), (0, 1, 0, 0)])
def test_single_places(decoder, lean, last, paddings):
    ids, mask = make_tokens(paddings=paddings)
    last = torch.tensor(last)
    expected = read(decoder.forward, ids, mask)[torch.arange(4), last]
    with lean.read_only(last):
        found = read(lean, ids, mask)
    assert found.shape == (4, 1, expected.shape[-1])
    assert close(found[mask[torch.arange(4), last].bool(), 0], expected[mask[range(4), last] == 1])
    assert read(lean, ids, mask).shape[1] == 11  # it is over with the block


def test_a_mask_of_scores(decoder, lean):
    """What is added to the scores, as transformers takes it too."""
    ids, mask = make_tokens()
    hidden = torch.ones(11, 11).triu(1).bool()[None, None] | ~mask.bool()[:, None, None]
    scores = torch.zeros(4, 1, 11, 11).masked_fill(hidden, torch.finfo(torch.float32).min)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected, found = (
            forward(input_ids=ids, attention_mask=scores, position_ids=positions).last_hidden_state
            for forward in (decoder.forward, lean)
        )
    assert close(found[mask.bool()], expected[mask.bool()])
    assert close(found[mask.bool()], read(lean, ids, mask)[mask.bool()])


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("make_cache", [DynamicCache, StaticCache])
def test_steps_behind_a_cache(decoder, lean, make_cache):
    """A prompt, three tokens at once, then one at a time."""
    ids, mask = make_tokens(paddings=(0, 0, 4, 0))
    found = []
    for forward in (decoder.forward, lean):
        options = {"config": decoder.config, "max_cache_len": 15}
        cache, states = make_cache(**options) if make_cache is StaticCache else make_cache(), []
        for start, stop in ((0, 5), (5, 8), (8, 9), (9, 10), (10, 11)):
            states.append(read(forward, ids[:, start:stop], mask[:, :stop], cache))
        found.append(torch.cat(states, 1)[mask.bool()])
        assert cache.get_seq_length() == 11
    assert close(found[1], found[0])
    assert close(found[1], read(decoder.forward, ids, mask)[mask.bool()])


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("num_new", [1, 4])
def test_single_places_behind_a_cache(decoder, lean, num_new):
    """Also where a prompt has one token behind what all prompts share."""
    ids, mask = make_tokens(paddings=(0, 0, 4, 0))
    caches, states = (DynamicCache(), DynamicCache()), []
    start = 11 - num_new
    last = torch.full((4,), num_new - 1)
    for forward, cache in zip((decoder.forward, lean), caches, strict=True):
        read(forward, ids[:, :start], mask[:, :start], cache)
        with lean.read_only(last):
            states.append(read(forward, ids[:, start:], mask, cache)[:, -1])
    assert close(states[1], states[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_follow_a_change_of_type(decoder, dtype):
    """And take the values of weights that are changed in place, in the backbone or by a copy."""
    ids, mask = make_tokens()
    model = copy.deepcopy(decoder)
    lean = LeanForward(model, make_head(model))
    before = read(lean, ids, mask)
    model.to(dtype)
    found = read(lean, ids, mask)
    assert found.dtype == dtype
    assert close(found.float()[mask.bool()], before[mask.bool()], 0.2)
    assert close(
        found.float()[mask.bool()], read(model.forward, ids, mask).float()[mask.bool()], 0.2
    )
    model.float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    found, expected = read(lean, ids, mask), read(model.forward, ids, mask)
    assert close(found[mask.bool()], expected[mask.bool()])
    assert not close(found[mask.bool()], before[mask.bool()], 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_round_no_more_than_the_models_own(decoder, dtype):
    """Also where scores are large, which rounded to bfloat16 would miss by more."""
    model = copy.deepcopy(decoder).to(dtype)
    for layer in model.layers:
        layer.self_attn.q_proj.weight.data *= 12
        layer.self_attn.k_proj.weight.data *= 12
    ids, mask = make_tokens(num_rows=64, paddings=[0] * 64)
    states = []
    for forward in (
        copy.deepcopy(model).double().forward,
        model.forward,
        LeanForward(model, make_head(model)),
    ):
        cache = DynamicCache()
        read(forward, ids[:, :10], mask[:, :10], cache)
        states.append(read(forward, ids[:, 10:], mask, cache).double())
    own, ours = ((found - states[0]).norm() for found in states[1:])
    assert ours < 1.1 * own


def test_the_head_is_that_of_the_last_prompt(decoder):
    head = make_head(decoder)
    lean = LeanForward(decoder, head)
    states = read(lean, *make_tokens())
    before = head(states)
    assert close(lean.predict(states), before)
    head.weight.data *= 2
    read(lean, *make_tokens())
    assert close(lean.predict(states), 2 * before)


def test_a_copy_has_weights_of_its_own(decoder):
    model = copy.deepcopy(decoder)
    install_lean_forward(model, make_head(model))
    ids, mask = make_tokens()
    expected = read(model.forward, ids, mask)
    copied = copy.deepcopy(model)
    assert isinstance(copied.forward, LeanForward)
    assert copied.forward is not model.forward
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(read(model.forward, ids, mask), expected)
    assert not read(copied.forward, ids, mask).any()


def test_weights_take_no_more_memory(decoder):
    model = copy.deepcopy(decoder)
    read(LeanForward(model, make_head(model)), *make_tokens())
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
    assert sum(s.nbytes() for s in storages.values()) == sum(p.nbytes for p in model.parameters())
    assert len(storages) < len(list(model.parameters()))


def test_gradients_and_hidden_states_are_the_models_own(decoder):
    model = copy.deepcopy(decoder).requires_grad_()
    lean = install_lean_forward(model, make_head(model))
    ids, mask = make_tokens()
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)
    )
    output.last_hidden_state.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "layers" in name)
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            output_hidden_states=True,
        )
        assert len(output.hidden_states) == len(model.layers) + 1
        with lean.read_only(torch.tensor([10, 2, 10, 3])):
            cut = model(input_ids=ids, attention_mask=mask)  # positions are left to the model
    assert cut.last_hidden_state.shape[1] == 1
    assert close(cut.last_hidden_state[0, 0], read(lean, ids, mask)[0, 10])


def test_generate_writes_the_same(make_encoder, processor, prompts):
    """transformers' own loop hands over other positions."""
    encoder, prompt = make_encoder(lora=None), processor(prompts[2:3])
    given = {
        name: getattr(prompt, name)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values")
    }
    given |= {"image_grid_thw": prompt.image_grid_thw, "max_new_tokens": 6, "do_sample": False}
    expected = encoder.model.generate(**given)
    encoder.prepare_inference()
    assert torch.equal(encoder.model.generate(**given), expected)


def test_any_projection_may_be_replaced(decoder):
    model = copy.deepcopy(decoder)
    lean = LeanForward(model, make_head(model))
    ids, mask = make_tokens(paddings=(0, 0, 0, 0))
    before = read(lean, ids, mask)
    attention = model.layers[0].self_attn
    attention.v_proj.weight.data = attention.v_proj.weight.data * 2
    found = read(lean, ids, mask)
    assert close(found, read(model.forward, ids, mask))
    assert not close(found, before, 1e-3)


def test_mixed_precision_is_the_models_own(decoder, lean):
    """A residual that is added by a product would take the product's type."""
    ids, mask = make_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (read(forward, ids, mask) for forward in (decoder.forward, lean))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert not torch.equal(found, read(lean, ids, mask))  # the control


def adapt(layer):
    layer.self_attn.q_proj = type("Adapted", (nn.Linear,), {})(4, 4)


def slide(layer):
    layer.self_attn.sliding_window = 7


def rename(layer):
    del layer.mlp.gate_proj


def spoil(layer):
    layer.post_attention_layernorm.forward = lambda states: states * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (adapt, "a projection is a Adapted, not a plain Linear"),
        (slide, "layer 1 attends to a sliding window"),
        (rename, "gate_proj"),
        (spoil, "in fewer operations, states differ by"),
    ],
)
def test_what_it_cannot_read_stays_as_it_is(decoder, change, reason, monkeypatch):
    told = []
    monkeypatch.setattr("tracelib.models.lean_forward.rank_zero_info", told.append)
    model = copy.deepcopy(decoder)
    change(model.layers[1])
    assert install_lean_forward(model, make_head(model)) is None
    assert "forward" not in vars(model)
    assert len(told) == 1
    assert reason in told[0]


def test_other_attention_stays_as_it_is(decoder, monkeypatch):
    monkeypatch.setattr(decoder.config, "_attn_implementation", "eager")
    with pytest.raises(ValueError, match="attention is by eager"):
        LeanForward(decoder, make_head(decoder))


def test_the_engine_uses_it(make_encoder, processor, prompts, answered, monkeypatch):
    """Prompts, decoding and whole sequences are read without one call of the model's own."""
    encoder = make_encoder()
    engine = ReasoningEngine(encoder, None, 7, 3)
    parts = [processor(prompts[:4], "left"), processor(prompts[4:])]
    size, batch = len(prompts), processor(answered)

    def run():
        output = engine.embed_queries(parts, AlwaysGate(), torch.zeros(size), torch.arange(size))
        with torch.no_grad():
            return output, encoder.embed(batch)

    expected, embedded = run()
    encoder.prepare_inference()
    model = encoder.model.get_decoder()
    monkeypatch.setattr(type(model), "forward", None)
    found, again = run()
    assert found.rationale_token_ids == expected.rationale_token_ids
    assert any(expected.rationale_token_ids)
    assert close(found.embeddings, expected.embeddings, 1e-4)
    assert close(again, embedded, 1e-4)


@pytest.mark.parametrize("is_lean", [False, True])
def test_one_state_a_row_is_that_of_all(make_encoder, processor, answered, is_lean):
    encoder, inputs = make_encoder(lora=None), processor(answered)
    encoder.prepare_inference(lean=is_lean)
    positions = encoder.compute_positions(inputs)[0]
    last = inputs.attention_mask.sum(-1) - torch.arange(1, len(answered) + 1)
    with torch.no_grad():
        whole = encoder.run_backbone(inputs, positions)
        states = encoder.run_backbone(inputs, positions, last=last)
    assert close(states[:, 0], whole[torch.arange(len(last)), last])


def test_adapters_are_merged_first(tiny_backbone):
    """The control: adapted projections are not plain, so an encoder in training stays as it is."""
    encoder = Encoder(str(tiny_backbone), lora=LoRA(4, 8))
    model = encoder.model.get_base_model()
    assert install_lean_forward(model.get_decoder(), model.get_output_embeddings()) is None
    encoder.prepare_inference()
    assert isinstance(encoder.model.get_decoder().forward, LeanForward)


def test_pictures_of_deep_layers_are_left_to_the_model(other_backbone, processor, answered):
    """Qwen3-VL adds vision states behind its first layers."""
    from tests.models.test_other_backbones import make_encoder, make_processor

    encoder = make_encoder(other_backbone("qwen3_vl"))
    inputs = make_processor(other_backbone("qwen3_vl"), "qwen3_vl")(answered)
    with torch.no_grad():
        expected = encoder.embed(inputs)
        encoder.prepare_inference()
        found = encoder.embed(inputs)
        blank = encoder.embed(replace(inputs, pixel_values=0 * inputs.pixel_values))
    assert close(found, expected, 1e-4)
    assert not close(blank, expected, 1e-3)
