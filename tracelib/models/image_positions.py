"""Rotary positions of tokens between which there are pictures (M-RoPE), all rows at once.

transformers finds them row by row, and asks the device for each picture's size.

Shapes: B rows, T tokens, N pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor


def find_image_positions(
    is_token: Tensor, is_image: Tensor, grids: Tensor, merge_size: int
) -> tuple[Tensor, Tensor]:
    """Return positions in time, height and width, and what comes next.

    A text token is one step after what precedes it, in all three. A picture's tokens have the rows
    and columns of its grid, and together take as many steps as its longer side has tokens.

    Args:
        is_token: `[B, T]` bool, False on padding.
        is_image: `[B, T]` bool, whether a token stands for a piece of a picture; between two
            pictures of a row there is another token.
        grids: `[N, 3]` patches in time, height and width, in the order of the pictures, of which
            there is one at least.
        merge_size: Patches along each side of a token.

    Returns:
        `[3, B, T]` positions, 0 on padding, and `[B, 1]` the next position minus the row's length.

    Raises:
        ValueError: There are more or fewer pictures than grids.

    References:
        Qwen2-VL, arXiv 2409.12191, section 2.1.

    >>> is_image = torch.tensor([[False, True, True, True, True, True, True, False]])
    >>> every = torch.ones_like(is_image)
    >>> positions, deltas = find_image_positions(every, is_image, torch.tensor([[1, 4, 6]]), 2)
    >>> positions[:, 0].tolist()
    [[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]
    >>> deltas.tolist()
    [[-3]]
    """
    before = torch.roll(is_image, 1, dims=1)
    before[:, 0] = False
    is_start = is_image & ~before
    starts = is_start.flatten().nonzero()[:, 0]
    if len(starts) != len(grids):
        raise ValueError(f"{len(starts)} pictures in the tokens, but {len(grids)} grids")
    _, height, width = (grids // torch.tensor([1, merge_size, merge_size]).to(grids)).unbind(1)
    number = (is_start.flatten().cumsum(0) - 1).clamp(min=0)
    steps = (is_token & ~is_image).long().flatten()
    steps[starts] = torch.maximum(height, width)
    steps = steps.view(is_token.shape)
    position = (steps.cumsum(1) - steps).flatten()
    # of each token the picture that began last, which matters on pictures only
    inside = torch.arange(len(number), device=number.device) - starts[number]
    height, width = height[number], width[number]
    offsets = (inside // (height * width), inside // width % height, inside % width)
    begin = position[starts][number]
    positions = torch.stack(
        [torch.where(is_image.flatten(), begin + offset, position) for offset in offsets]
    ).view(3, *is_token.shape)
    return positions * is_token, steps.sum(1, keepdim=True) - is_token.sum(1, keepdim=True)
