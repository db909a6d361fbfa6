"""Rotary positions of all rows at once against transformers', row by row."""

import random

import pytest
import torch

from tests.tiny_backbones import FAMILIES
from tracelib.models.encoder import Encoder
from tracelib.models.image_positions import find_image_positions

GRIDS = ((1, 2, 2), (1, 4, 6), (1, 6, 4), (1, 2, 10), (1, 8, 8))
"""Patches in time, height and width; four are a token."""


def make_batch(rng, num_rows):
    """Return types of tokens, a mask and grids: up to three pictures a row, padded anywhere."""
    rows, grids = [], []
    for _ in range(num_rows):
        types = [0] * rng.randint(0, 3)
        for _ in range(rng.randint(0, 3)):
            grid = rng.choice(GRIDS)
            grids.append(grid)
            types += [1] * (grid[1] * grid[2] // 4) + [0] * rng.randint(1, 5)
        rows.append(types or [0])
    width = max(map(len, rows)) + 2
    mask, types = torch.zeros(num_rows, width).long(), torch.zeros(num_rows, width).long()
    for row, values in enumerate(rows):
        start = rng.choice((0, width - len(values)))
        mask[row, start : start + len(values)] = 1
        types[row, start : start + len(values)] = torch.tensor(values)
    return types, mask, torch.tensor(grids)


@pytest.mark.parametrize("family", ["qwen2_5_vl", *(f for f in FAMILIES if f != "smolvlm")])
def test_positions_are_those_of_transformers(family, tiny_backbone, other_backbone):
    folder = tiny_backbone if family == "qwen2_5_vl" else other_backbone(family)
    model = Encoder(str(folder), lora=None).model.model
    assert model.config.vision_config.spatial_merge_size == 2
    rng, num_pictures = random.Random(0), 0
    for _ in range(40):
        types, mask, grids = make_batch(rng, rng.randint(1, 6))
        if not len(grids):  # texts alone are counted without it
            continue
        expected, deltas = model.get_rope_index(
            types, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=mask
        )
        found = find_image_positions(mask.bool(), types == 1, grids, 2)
        assert torch.equal(found[0], expected)
        assert torch.equal(found[1], deltas.view(-1, 1))
        num_pictures += len(grids)
    assert num_pictures > 100


def test_pictures_and_grids_must_be_as_many():
    is_image = torch.tensor([[False, True, False]])
    with pytest.raises(ValueError, match="1 pictures in the tokens, but 2 grids"):
        find_image_positions(~is_image | is_image, is_image, torch.tensor([[1, 2, 2]] * 2), 2)
