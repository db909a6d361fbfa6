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
from tracelib.models.gates import NeverGate
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
