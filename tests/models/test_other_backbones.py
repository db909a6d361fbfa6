"""Backbones of other families are trained, encoded and decoded by the same code."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.tiny_backbones import FAMILIES, HIDDEN, LAYERS, SMOL_SETTINGS, SMOL_SLOT
from tracelib.data.collator import ChatProcessor
from tracelib.models.backbone import LoRA
from tracelib.models.backbone_parts import (
    find_decoder_layers,
    find_read_blocks,
    find_vision_blocks,
    has_image_positions,
)
from tracelib.models.encoder import Encoder
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate
from tracelib.models.lean_vision import LeanVision

RANK, KEYS, MLP = 4, 16, 48
LORA_NUMBERS = RANK * LAYERS * (2 * 2 * HIDDEN + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + MLP))
MERGED = 4 * 16  # four patches of the vision encoder's width
TOLERANCE = 1e-5


def count_mlp(width, out):
    return (width * width + width) + (width * out + out)


PROJECTOR_NUMBERS = {
    "qwen2_vl": 2 * 16 + count_mlp(MERGED, HIDDEN),
    "qwen3_vl": 2 * 16 + count_mlp(MERGED, HIDDEN) + 2 * (2 * MERGED + count_mlp(MERGED, HIDDEN)),
    "smolvlm": MERGED * HIDDEN,
}
PROJECTORS = {
    "qwen2_vl": ("visual.merger",),
    "qwen3_vl": ("visual.merger", "visual.deepstack_merger_list"),
    "smolvlm": ("connector",),
}
TIED = {"qwen3_vl"}


def make_processor(folder, family):
    smol = {"image_slot": SMOL_SLOT, "image_processor": SMOL_SETTINGS}
    return ChatProcessor(folder, "<|emb|>", **(smol if family == "smolvlm" else {}))


def make_encoder(folder, **settings):
    torch.manual_seed(0)
    encoder = Encoder(str(folder), lora=LoRA(RANK, 2 * RANK), **settings)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def processor(other_backbone, family):
    return make_processor(other_backbone(family), family)


@pytest.fixture(scope="module")
def encoder(other_backbone, family):
    return make_encoder(other_backbone(family))


def encode(encoder, inputs):
    with torch.no_grad():
        return encoder(inputs)


def close(a, b, tolerance=TOLERANCE):
    return (a - b).abs().max() < tolerance * b.abs().max()


def test_trained_are_lora_projector_and_the_tokens_rows(encoder, family):
    counts = dict.fromkeys(("lora", "projector", "token", "rest"), 0)
    names = {f"model.{name}" for name in PROJECTORS[family]}
    for name, parameter in encoder.model.get_base_model().named_parameters():
        if parameter.requires_grad:
            part = "lora" if "lora_" in name else "token" if "trainable_tokens" in name else "rest"
            part = "projector" if any(name.startswith(prefix) for prefix in names) else part
            counts[part] += parameter.numel()
    assert counts == {
        "lora": LORA_NUMBERS,
        "projector": PROJECTOR_NUMBERS[family],
        "token": HIDDEN * (1 if family in TIED else 2),
        "rest": 0,
    }


def test_the_parts_are_where_the_family_has_them(encoder, family):
    vision, decoder = find_vision_blocks(encoder.model), find_decoder_layers(encoder.model)
    assert (len(vision), len(decoder)) == ({"qwen3_vl": 3}.get(family, 2), LAYERS)
    assert not any(p.requires_grad for block in vision for p in block.parameters())
    assert find_read_blocks(encoder.model) == ([0, 1] if family == "qwen3_vl" else [])
    assert has_image_positions(encoder.model) == (family != "smolvlm")


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_reads_the_states_of_the_backbones_own_forward(
    other_backbone, family, processor, answered, read_offset
):
    """One row at a time, adapter merged, and with the library's own positions and attention."""
    encoder = make_encoder(other_backbone(family), read_offset=read_offset)
    output = encode(encoder, processor(answered))
    encoder.prepare_inference()
    for row, turn in enumerate(answered):
        inputs = processor([turn])
        given = {
            "pixel_values": inputs.pixel_values,
            "image_grid_thw": inputs.image_grid_thw,
            "mm_token_type_ids": inputs.mm_token_type_ids,
        }
        names = ("pixel_values",) if family == "smolvlm" else tuple(given)
        with torch.no_grad():
            states = encoder.model(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                output_hidden_states=True,
                **{name: given[name] for name in names},
            ).hidden_states[-1][0]
        assert close(output.embedding[row], states[-1 + read_offset], 1e-4), row


def test_an_embedding_does_not_depend_on_its_batch_or_padding(encoder, processor, answered):
    together = encode(encoder, processor(answered)).embedding
    left = encode(encoder, processor(answered, "left")).embedding
    backwards = encode(encoder, processor(answered[::-1])).embedding.flip(0)
    alone = torch.cat([encode(encoder, processor([turn])).embedding for turn in answered])
    for given in (together, left, backwards):
        assert close(given, alone)
    differences = (alone[:, None] - alone).abs().amax(-1)
    assert (differences + torch.eye(len(answered))).min() > 100 * TOLERANCE  # the control


def test_the_picture_counts(encoder, processor, answered):
    turn = next(t for t in answered if t.images)
    inverted = replace(turn, images=[turn.images[0].point(lambda value: 255 - value)])
    a, b = (encode(encoder, processor([t])).embedding for t in (turn, inverted))
    assert not close(a, b, 1e-3)


def test_two_pictures_of_one_turn_are_two(encoder, processor, answered):
    pictures = [Image.new("RGB", (64, 64), color) for color in ((200, 0, 0), (0, 0, 200))]
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]
    turn = replace(answered[1], messages=[{"role": "user", "content": parts}], images=pictures)
    swapped = replace(turn, images=pictures[::-1])
    a, b = (encode(encoder, processor([t])).embedding for t in (turn, swapped))
    assert close(encode(encoder, processor([answered[0], turn])).embedding[1], a[0])
    assert not close(a, b, 1e-3)


def test_a_second_pass_reads_the_vision_outputs_of_the_first(encoder, processor, answered):
    inputs = processor(answered)
    expected = encode(encoder, inputs).embedding
    shared = replace(inputs, vision_outputs={})
    assert close(encode(encoder, shared).embedding, expected)
    blank = replace(shared, pixel_values=torch.zeros_like(inputs.pixel_values) + 0.1)
    assert close(encode(encoder, blank).embedding, expected)
    blank.vision_outputs = None
    assert not close(encode(encoder, blank).embedding, expected, 1e-3)


def test_every_trained_weight_gets_a_gradient(other_backbone, family, processor, answered):
    encoder = make_encoder(other_backbone(family), read_offset=0).train()
    output = encoder(processor(answered))
    (output.embedding.sum() + output.lm_logits.sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name


def test_without_pictures_the_projector_gets_a_zero_gradient(
    other_backbone, family, processor, answered
):
    encoder = make_encoder(other_backbone(family)).train()
    encoder(processor([t for t in answered if not t.images])).embedding.sum().backward()
    names = PROJECTORS[family]
    gradients = [
        p.grad for n, p in encoder.named_parameters() if any(f".{name}." in n for name in names)
    ]
    assert gradients
    assert all(g is not None and not g.any() for g in gradients)


def test_gradient_checkpointing_changes_no_gradient(other_backbone, family, processor, answered):
    gradients = []
    for gradient_checkpointing in (False, True):
        encoder = make_encoder(
            other_backbone(family), gradient_checkpointing=gradient_checkpointing
        ).train()
        encoder(processor(answered)).embedding.square().sum().backward()
        trained = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        gradients.append(torch.cat(trained))
    assert close(gradients[1], gradients[0])


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_decoding_gives_what_one_plain_pass_gives(
    other_backbone, family, processor, prompts, read_offset
):
    """Thoughts of different lengths share three slots; each is then read again with its prompt."""
    encoder = make_encoder(other_backbone(family), read_offset=read_offset)
    engine = ReasoningEngine(encoder, None, max_rationale_tokens=7, decode_batch_size=3)
    parts = [processor(prompts[:4], "left"), processor(prompts[4:])]
    size = len(prompts)
    output = engine.embed_queries(parts, AlwaysGate(), torch.zeros(size), torch.arange(size))
    for row, turn in enumerate(prompts):
        written = output.rationale_token_ids[row]
        (prompt,) = processor.tokenize([turn])
        whole = replace(prompt, ids=[*prompt.ids, *written, encoder.emb_token_id])
        plain = encode(encoder, processor.pad([whole]).unpack())
        assert close(output.embeddings[row], plain.embedding[0], 1e-4), row
        chosen = plain.lm_logits.argmax(-1)[: len(written)].tolist()
        assert chosen == written
    assert output.embeddings.isfinite().all()
    assert any(output.rationale_token_ids)


def test_a_prepared_encoder_embeds_as_before(other_backbone, family, processor, answered):
    encoder = make_encoder(other_backbone(family))
    inputs = processor(answered)
    with torch.no_grad():
        expected = encoder.embed(inputs)
        encoder.prepare_inference()
        found = encoder.embed(inputs)
    assert close(found, expected, 1e-4)
    visual = encoder.model.get_encoder(modality="image")
    assert isinstance(vars(visual).get("forward"), LeanVision) == (family != "smolvlm")
