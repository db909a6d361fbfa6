"""A vision encoder that reads in fewer operations gives transformers' own states."""

import copy

import pytest
import torch
from torch import nn
from transformers import vision_utils

from tracelib.models.encoder import Encoder
from tracelib.models.lean_vision import LeanVision, install_lean_vision

SIZES = {
    "one picture": [(1, 4, 6)],
    "pictures of one size": [(1, 4, 4)] * 5,
    "pictures of many sizes": [(1, 4, 6), (1, 12, 2), (1, 4, 6), (1, 20, 14), (1, 2, 2)],
    "windows that fill a picture": [(1, 16, 16), (1, 8, 8)],
    "a video": [(3, 4, 4), (1, 2, 6)],
}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def visual(request, tiny_backbone, other_backbone):
    """A vision encoder; norms and biases, which are 1 and 0 when new, are random."""
    folder = tiny_backbone if request.param == "qwen2_5_vl" else other_backbone(request.param)
    torch.manual_seed(0)
    visual = Encoder(str(folder), lora=None).eval().model.get_encoder(modality="image")
    for parameter in visual.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.3)
    return visual


def make_pictures(visual, sizes):
    torch.manual_seed(1)
    grids = torch.tensor(sizes)
    size = visual.patch_embed.proj.weight[0].numel()
    return torch.randn(int(grids.prod(-1).sum()), size), grids


def read(forward, patches, grids):
    """Return all that the language model is given of each picture."""
    with torch.no_grad():
        output = forward(patches, grids)
    return torch.stack([output.pooler_output, *getattr(output, "deepstack_features", [])])


def measure_difference(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("most_scores", [0, 2**20], ids=["sdpa", "products"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_states_are_the_encoders_own(visual, sizes, most_scores, monkeypatch):
    monkeypatch.setattr("tracelib.models.lean_vision.MOST_SCORES", most_scores)
    patches, grids = make_pictures(visual, sizes)
    lean = LeanVision(visual)
    expected = read(visual.forward, patches, grids)
    for _ in range(2):  # what it remembers of the first time does no harm
        assert measure_difference(read(lean, patches, grids), expected) < 1e-6
    other = read(lean, patches.flip(0), grids)  # the control
    assert measure_difference(other, expected) > 1e-2


def test_a_picture_does_not_see_its_neighbours(visual):
    patches, grids = make_pictures(visual, SIZES["pictures of many sizes"])
    lean = LeanVision(visual)
    together, first = read(lean, patches, grids), 0
    ends = (grids.prod(-1) // visual.spatial_merge_size**2).cumsum(0).tolist()
    sizes = grids.prod(-1).tolist()
    for size, start, end, grid in zip(sizes, [0, *ends], ends, grids, strict=False):
        alone = read(lean, patches[first : first + size], grid[None])
        assert measure_difference(together[:, start:end], alone) < 1e-6
        first += size


def test_sizes_are_laid_out_once(visual, monkeypatch):
    patches, grids = make_pictures(visual, SIZES["pictures of many sizes"])
    lean, asked = LeanVision(visual), []
    own = vision_utils.get_vision_position_ids
    monkeypatch.setattr(
        vision_utils,
        "get_vision_position_ids",
        lambda grid, *rest, **options: asked.append(grid.tolist()) or own(grid, *rest, **options),
    )
    for _ in range(2):
        read(lean, patches, grids)
    sizes = SIZES["pictures of many sizes"]
    assert sorted(tuple(size) for (size,) in asked) == sorted({*sizes})


def test_bfloat16_states_are_as_near_to_exact_ones_as_the_encoders_own(visual):
    exact, rounded = visual, copy.deepcopy(visual)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    patches, grids = make_pictures(visual, SIZES["pictures of many sizes"])
    expected = read(exact.forward, patches.bfloat16().float(), grids)
    own, found = (
        measure_difference(read(forward, patches.bfloat16(), grids).float(), expected)
        for forward in (rounded.forward, LeanVision(rounded))
    )
    assert found < 1.2 * own


def test_gradients_are_the_encoders_own(visual):
    """In training nothing is replaced: no attention of ours is asked."""
    patches, grids = make_pictures(visual, SIZES["one picture"])
    lean = LeanVision(visual)
    lean._attentions = None  # would fail
    patches.requires_grad_(True)
    lean(patches, grids).pooler_output.sum().backward()
    assert patches.grad.abs().sum() > 0


def test_an_error_leaves_the_encoder_as_it_was(visual):
    patches, grids = make_pictures(visual, SIZES["one picture"])
    lean = LeanVision(visual)
    with pytest.raises(RuntimeError):
        read(lean, patches[:, :-1], grids)
    assert not any("forward" in vars(m) for m in (visual.patch_embed, visual.blocks[0].attn))
    assert (
        measure_difference(read(lean, patches, grids), read(visual.forward, patches, grids)) < 1e-6
    )


def overlap(visual):
    visual.patch_embed.proj.stride = (2, 8, 8)


def rename(visual):
    attention = visual.blocks[0].attn
    attention.fused, attention.qkv = attention.qkv, None
    del attention.qkv


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (overlap, "not by a convolution without overlap"),
        (rename, "qkv"),
        (lambda visual: setattr(visual.config, "_attn_implementation", "eager"), "by eager"),
    ],
)
def test_what_it_cannot_read_stays_as_it_is(visual, change, reason, monkeypatch):
    told = []
    monkeypatch.setattr("tracelib.models.lean_vision.rank_zero_info", told.append)
    visual = copy.deepcopy(visual)
    change(visual)
    assert install_lean_vision(visual) is None
    assert "forward" not in vars(visual)
    assert len(told) == 1
    assert reason in told[0]


def test_a_difference_is_found(visual, monkeypatch):
    """The comparison before it is installed would see a wrong result."""
    monkeypatch.setattr(
        LeanVision, "group_windows", lambda lean, ends: [(int(ends[-1]), None)]
    )  # all pictures see each other
    told = []
    monkeypatch.setattr("tracelib.models.lean_vision.rank_zero_info", told.append)
    assert install_lean_vision(visual) is None
    assert "states differ by" in told[0]
    assert "forward" not in vars(visual)


def test_the_comparison_sees_windows(visual, monkeypatch):
    """Windows of pictures larger than one are laid out as one: not where there are none."""
    own = LeanVision._lay_out_picture

    def lay_out(lean, *size):
        positions, index, lengths = own(lean, *size)
        return positions, index, lengths.sum(0, keepdim=True)

    monkeypatch.setattr(LeanVision, "_lay_out_picture", lay_out)
    assert (LeanVision(visual).compare() > 1e-3) == hasattr(visual, "window_size")
