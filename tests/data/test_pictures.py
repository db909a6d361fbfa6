import random

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.tiny_backbones import SMOL_SETTINGS, SMOL_SLOT
from tracelib.data.pictures import PictureReader

SMOL = {"slot": SMOL_SLOT, "settings": SMOL_SETTINGS}


@pytest.fixture
def make_reader(tiny_backbone, other_backbone):
    """Call it for a reader of a family's pictures."""

    def make(family="", least=None, most=None, slot=None, settings=None):
        folder = other_backbone(family) if family else tiny_backbone
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        return PictureReader(image_processor, "backbone x", least, most, slot, settings or {})

    return make


def count_tokens(reader, *sizes):
    return reader.read([[Image.new("RGB", size) for size in sizes]])[0][2]


@pytest.mark.parametrize(
    ("limits", "expected"), [((None, None), 6), ((None, 1), 1), ((10, None), 12), ((2, 3), 2)]
)
def test_a_budget_bounds_the_image_tokens(make_reader, limits, expected):
    assert count_tokens(make_reader("", *limits), (84, 56)) == [expected]


def test_300_tokens_are_the_pixels_that_they_stand_for():
    """The published recipe's limit, 235,200 pixels, resizes every picture as before."""
    rng = random.Random(0)
    sizes = [(rng.randint(40, 1500), rng.randint(40, 1500)) for _ in range(12)]
    by_tokens = PictureReader(Qwen2VLImageProcessorPil(), "x", None, 300, None, {})
    pixels = {"shortest_edge": 56**2, "longest_edge": 235_200}
    by_pixels = PictureReader(Qwen2VLImageProcessorPil(size=pixels), "x", None, None, None, {})
    counts = [count_tokens(by_tokens, size) for size in sizes]
    assert counts == [count_tokens(by_pixels, size) for size in sizes]
    assert max(counts)[0] <= 300


@pytest.mark.parametrize("family", ["", "qwen2_vl", "qwen3_vl"])
def test_pictures_of_one_record_share_the_budget(make_reader, family):
    """Whatever the patch size: 28 pixels a token, or 32."""
    reader = make_reader(family, most=13)
    rng = random.Random(0)
    for num_pictures in (1, 2, 3, 5):
        for _ in range(5):
            sizes = [(rng.randint(300, 500), rng.randint(300, 500)) for _ in range(num_pictures)]
            counts = count_tokens(reader, *sizes)
            assert max(counts) <= 13 // num_pictures
            alone = make_reader(family, most=13 // num_pictures)
            assert counts == [count_tokens(alone, size)[0] for size in sizes]
    assert count_tokens(reader, (500, 500)) == [9]
    assert count_tokens(make_reader(family, least=9, most=13), (28, 28)) == [9]
    assert count_tokens(make_reader(family, least=9, most=9), (28, 28), (28, 28)) == [4, 4]


def test_patches_of_several_pictures_are_those_of_each(make_reader):
    reader = make_reader("qwen3_vl")
    pictures = [Image.new("RGB", size) for size in ((64, 96), (32, 32))]
    ((patches, grid, counts),) = reader.read([pictures])
    assert (grid.tolist(), counts) == ([[1, 6, 4], [1, 2, 2]], [6, 1])
    assert len(patches) == 4 * sum(counts)
    assert reader.read([[]]) == [(None, None, [])]


@pytest.mark.parametrize(("family", "settings"), [("", {"most": 8}), ("smolvlm", SMOL)])
def test_records_read_together_are_as_read_alone(make_reader, family, settings):
    """Whatever the number of pictures, which each record shares its budget among."""
    reader = make_reader(family, **settings)
    colours = iter(["red", "blue", "green", "white", "black", "grey"])
    records = [
        [Image.new("RGB", (84 * n, 56), next(colours)) for n in sizes]
        for sizes in ((1,), (), (2, 1), (3,), (1, 2))
    ]
    for together, record in zip(reader.read(records), records, strict=True):
        (alone,) = reader.read([record])
        assert together[2] == alone[2]
        for found, expected in zip(together[:2], alone[:2], strict=True):
            assert (found is None) == (expected is None)
            assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"least": 0}, r"min_image_tokens is 0, must be at least 1 \(data\.min_image_tokens\)"),
        ({"most": -2}, r"max_image_tokens is -2, must be at least 1"),
        ({"least": 5, "most": 4}, r"min_image_tokens is 5, more than max_image_tokens 4"),
        ({"settings": {"patchsize": 3}}, r"has no 'patchsize' \(data\.image_processor\)"),
        (
            {"slot": SMOL_SLOT},
            r"gives \['image_grid_thw', 'pixel_values'\], not \['pixel_values'\]",
        ),
        ({"family": "smolvlm"}, r"gives \['pixel_attention_mask', 'pixel_values'\].*image_slot"),
        ({"family": "smolvlm", "slot": SMOL_SLOT}, r"data\.image_processor for what it should"),
        ({"family": "smolvlm", "least": 2, **SMOL}, r"every picture of backbone x has 4: leave it"),
    ],
)
def test_what_does_not_fit_is_refused(make_reader, limits, message):
    with pytest.raises(ValueError, match=message):
        make_reader(**limits)


def test_a_record_with_too_many_pictures_is_refused(make_reader):
    with pytest.raises(ValueError, match=r"max_image_tokens is 1, but a record has 2 pictures of"):
        count_tokens(make_reader(most=1), (28, 28), (28, 28))
    reader = make_reader("smolvlm", most=8, **SMOL)
    assert count_tokens(reader, (28, 28), (90, 28)) == [4, 4]
    with pytest.raises(ValueError, match=r"has 3 pictures of at least 4 tokens"):
        count_tokens(reader, (28, 28), (28, 28), (28, 28))


@pytest.mark.parametrize("family", ["", "qwen2_vl", "qwen3_vl"])
def test_bytes_stand_for_what_the_image_processor_gives(make_reader, family):
    """To the last bit, whatever the picture's size and colours, and in a quarter of the memory."""
    reader = make_reader(family)
    noise = torch.randint(0, 256, (90, 131, 3), dtype=torch.uint8)
    pictures = [[Image.fromarray(noise.numpy())], [Image.new("RGB", (64, 64), (1, 2, 255))]]
    given = [reader.image_processor(images=[p], return_tensors="pt") for p in pictures]
    for (patches, _, _), expected in zip(reader.read(pictures), given, strict=True):
        assert patches.dtype == torch.uint8
        mean, deviation = reader.scale
        assert torch.equal((patches / 255 - mean) / deviation, expected["pixel_values"])


def test_what_bytes_cannot_stand_for_is_read_as_it_is(make_reader):
    """Another rescaling, and pictures that are all one size."""
    reader = make_reader(settings={"rescale_factor": 1 / 127})
    assert reader.scale is None
    ((patches, _, _),) = reader.read([[Image.new("RGB", (56, 56), (255, 0, 0))]])
    given = reader.image_processor(images=[[Image.new("RGB", (56, 56), (255, 0, 0))]])
    assert torch.equal(patches, torch.as_tensor(given["pixel_values"]))
    smol = make_reader("smolvlm", **SMOL)
    assert smol.scale is None
    assert smol.read([[Image.new("RGB", (56, 56))]])[0][0].is_floating_point()
