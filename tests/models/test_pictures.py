"""Pictures of several parts read at once give what each part's own give."""

import dataclasses
import random

import pytest
import torch
from PIL import Image

from tracelib.data.collator import ChatProcessor, Turn
from tracelib.models import pictures
from tracelib.models.encoder import Encoder
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.models.sampling import Sampling
from tracelib.prompts import Template

FAMILIES = ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"]
SIZES = ((28, 28), None, (84, 56), (56, 56), None, None, (56, 28), (140, 84), None, (28, 28), None)
LAYOUT = (2, 3, 1, 4, 1)  # the third part and the last have no pictures


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tiny_backbone, other_backbone):
    family = request.param
    return tiny_backbone if family == "qwen2_5_vl" else other_backbone(family)


@pytest.fixture(scope="module")
def encoder(folder):
    torch.manual_seed(0)
    encoder = Encoder(str(folder), lora=None).eval()
    encoder.prepare_inference()
    return encoder


@pytest.fixture(scope="module")
def parts(folder):
    processor = ChatProcessor(folder, "<|emb|>")
    rng, turns = random.Random(0), []
    for number, size in enumerate(SIZES):
        pixels = rng.randbytes(3 * size[0] * size[1]) if size else b""
        images = [Image.frombytes("RGB", size, pixels)] if size else []
        text = "red star " * (1 + number % 3)
        turns.append(Turn(Template().build_messages(len(images), "Find it.", text, -1), images))
    parts = []
    for size in LAYOUT:
        parts.append(processor(turns[:size]))
        turns = turns[size:]
    assert [part.pixel_values is None for part in parts] == [False, False, True, False, True]
    return parts


def count_passes(encoder, monkeypatch):
    """Return a list that grows by the patches of every pass of the vision encoder."""
    visual, passes = encoder.model.get_encoder(modality="image"), []
    forward = visual.forward

    def run(patches, *args, **options):
        passes.append(len(patches))
        return forward(patches, *args, **options)

    monkeypatch.setattr(visual, "forward", run)
    return passes


def embed(encoder, parts):
    size = sum(LAYOUT)
    engine = ReasoningEngine(encoder, None, 3)
    return engine.embed_queries(parts, NeverGate(), torch.zeros(size), torch.arange(size))


def test_embeddings_do_not_depend_on_what_is_read_at_once(encoder, parts, monkeypatch):
    passes = count_passes(encoder, monkeypatch)
    own = [len(part.pixel_values) for part in parts if part.pixel_values is not None]
    outputs = []
    for most, expected in (
        (0, own),
        (sum(own), [sum(own)]),
        (sum(own) - 1, [own[0] + own[1], own[2]]),
    ):
        monkeypatch.setattr(pictures, "_MOST_PATCHES", most)
        passes.clear()
        outputs.append(embed(encoder, parts).embeddings)
        assert passes == expected
        assert (outputs[-1] - outputs[0]).abs().max() < 1e-5 * outputs[0].abs().max()
    # the control: what was read is what is embedded
    monkeypatch.setattr(pictures, "_MOST_PATCHES", sum(own))
    monkeypatch.setattr(pictures, "_select_pictures", turn_round)
    spoilt = embed(encoder, parts).embeddings
    assert (spoilt - outputs[0]).abs().max() > 1e-3 * outputs[0].abs().max()


def turn_round(output, some, select=pictures._select_pictures):
    chosen = select(output, some)
    chosen.pooler_output = [-states for states in chosen.pooler_output]
    return chosen


def test_pictures_that_later_passes_want_are_left_to_them(encoder, parts):
    kept = [dataclasses.replace(part, vision_outputs={}) for part in parts]
    assert all(part.pictures is None for part in pictures.read_pictures(encoder, kept))


def test_parts_come_in_order_and_keep_their_text(encoder, parts):
    with torch.no_grad():
        found = list(pictures.read_pictures(encoder, parts))
    assert len(found) == len(parts)
    for part, given in zip(found, parts, strict=True):
        assert torch.equal(part.input_ids, given.input_ids)
        if given.pixel_values is None:
            assert part.pictures is None
        else:
            assert part.pixel_values is None
            assert len(part.pictures.pooler_output) == len(given.image_grid_thw)


def test_parts_that_were_read_before_keep_their_pictures(encoder, parts):
    with torch.inference_mode():
        expected = embed(encoder, parts)
        again = list(pictures.read_pictures(encoder, parts))
        mixed = embed(encoder, [parts[0], again[1], *parts[2:]])
    assert again[1].pixel_values is None
    torch.testing.assert_close(mixed.embeddings, expected.embeddings, atol=1e-5, rtol=0)


def test_patches_in_bytes_stand_for_what_their_own_scale_says(encoder, parts):
    packed = []
    for number, part in enumerate(parts):
        if part.pixel_values is not None and number:
            size = part.pixel_values.shape
            scale = torch.stack([torch.full(size[1:], 0.2 * number), torch.ones(size[1:])])
            values = torch.randint(256, size, dtype=torch.uint8)
            part = dataclasses.replace(part, pixel_values=values, pixel_scale=scale)
        packed.append(part)
    with torch.inference_mode():
        read = list(pictures.read_pictures(encoder, packed))
        for found, part in zip(read, packed, strict=True):
            assert found.pixel_values is None
            if part.pixel_values is not None:
                expected = torch.cat(list(encoder.read_pictures(part).pooler_output))
                states = torch.cat(list(found.pictures.pooler_output))
                torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


def test_new_numbers_are_seen_though_no_prompt_was_without_pictures(folder, parts):
    """A backbone may read pictures by its own layers, and then decode by ours."""
    prompts, size, outputs = parts[1:2], 3, []  # too few for a prefix to be read alone

    def think(encoder):
        engine, ids = ReasoningEngine(encoder, None, 3), torch.arange(size)
        sampling = Sampling(1.0, 8)  # rows enough for products by oneDNN
        return engine.embed_queries(prompts, AlwaysGate(), torch.zeros(size), ids, sampling)

    for is_used in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(str(folder), lora=None).eval()
        if is_used:
            encoder.prepare_inference()
            before = think(encoder)
        with torch.no_grad():
            for layer in encoder.model.get_decoder().layers:
                layer.mlp.down_proj.weight.mul_(-3)
            encoder.model.get_output_embeddings().weight.mul_(-1)
        encoder.prepare_inference()
        outputs.append(think(encoder))
    fresh, used = outputs
    assert used.rationale_token_ids == fresh.rationale_token_ids
    torch.testing.assert_close(used.embeddings, fresh.embeddings, atol=1e-4, rtol=0)
    assert not torch.allclose(before.embeddings, used.embeddings, atol=1e-1)  # the control
