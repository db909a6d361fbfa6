"""A vision encoder's forward pass for inference, in fewer operations than transformers'.

Transformers has every picture, and every window of a picture, attend in a call of its own. Here all
of one length attend at once, as a batch; what depends on a picture's size alone is kept, and
patches are embedded by a matrix product, which is what a convolution without overlap is. Weights,
norms, MLPs and projector stay the model's own.

Shapes: N pictures, P patches of all, W windows (or whole pictures) that attend within themselves, L
patches of each of some of them, H heads, E numbers of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional
from transformers import vision_utils

from tracelib.models.lean_layer import MOST_SCORES, Rotation, attend_by_products

_PROBE_GRIDS = ((1, 4, 6), (1, 20, 14), (1, 4, 6), (2, 4, 4))  # several windows, and two frames
_MOST_SIZES = 256  # of pictures, whose layouts are kept

Group = tuple[int, Tensor | None]
"""L, and the patches `[W * L]` of all windows of that length, None for all there are."""


def install_lean_vision(visual: Any) -> LeanVision | None:
    """Have a vision encoder read by a `LeanVision`, where random pictures get the same states.

    Args:
        visual: The vision encoder of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.

    Returns:
        The new forward pass, or None where the encoder goes on as it is, which is logged.
    """
    if isinstance(visual.forward, LeanVision):
        return visual.forward
    try:
        lean = LeanVision(visual)
        difference = lean.compare()
        why = f"in fewer operations, states differ by {difference:.2g} of their size"
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        difference, why = torch.inf, str(error)
    if not difference < torch.finfo(visual.dtype).eps ** 0.5:
        rank_zero_info(f"{type(visual).__name__} reads by transformers' own layers: {why}")
        return None
    visual.forward = lean
    return lean


class LeanVision:
    """What takes the place of a vision encoder's `forward`.

    Where gradients or mixed precision are wanted, the encoder's own is asked. For one thread at a
    time.

    Args:
        visual: A vision encoder of Qwen's build: patches of all pictures in one sequence, which
            `grid_thw` takes apart, attention by `qkv` and `proj`.

    Raises:
        AttributeError: It has no such parts.
        ValueError: Its attention is not `sdpa`, or its patches overlap.
    """

    def __init__(self, visual: Any) -> None:
        attention = visual.config._attn_implementation
        if attention != "sdpa":
            raise ValueError(f"attention is by {attention}, not by sdpa")
        self._visual, self._merge_size = visual, visual.spatial_merge_size
        self._project = _check_patches(visual.patch_embed.proj)
        self._attentions = [_Attention(self, block.attn) for block in visual.blocks]
        self._groups: dict[int, tuple[Tensor, list[Group]]] = {}
        self._layouts: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, hidden_states: Tensor, grid_thw: Tensor, **options: Any) -> Any:
        """Return what the encoder returns of patches and `[N, 3]` sizes in patches."""
        visual = self._visual
        forward = partial(type(visual).forward, visual)
        if torch.is_grad_enabled() or torch.is_autocast_enabled(visual.device.type):
            return forward(hidden_states, grid_thw, **options)
        replaced: list[tuple[Any, Callable[..., Any]]] = [
            (visual.patch_embed, self._embed_patches),
            *((attention.module, attention) for attention in self._attentions),
        ]
        for module, ours in replaced:
            module.forward = ours
        try:
            return forward(hidden_states, grid_thw, **self._lay_out(grid_thw), **options)
        finally:
            self._groups.clear()
            for module, _ in replaced:
                del module.forward

    def _embed_patches(self, patches: Tensor) -> Tensor:
        """Return `[P, D]` states of patches `[P, pixels]`."""
        weight = self._project.weight
        return functional.linear(patches.to(weight.dtype), weight.flatten(1), self._project.bias)

    def _lay_out(self, grid_thw: Tensor) -> dict[str, Tensor]:
        """Return what transformers would compute picture by picture, as its options."""
        if len(self._layouts) > _MOST_SIZES:
            self._layouts.clear()
        sizes = [tuple(size) for size in grid_thw.tolist()]
        for size in {*sizes} - {*self._layouts}:
            self._layouts[size] = self._lay_out_picture(*size)
        layouts = [self._layouts[size] for size in sizes]
        device = grid_thw.device
        positions = torch.cat([layout[0] for layout in layouts])
        options = {"position_ids": positions.to(device)}
        if not hasattr(self._visual, "window_size"):
            return options
        indices, lengths = ([layout[part] for layout in layouts] for part in (1, 2))
        counts = torch.tensor([len(index) for index in indices])
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        options["window_index"] = (torch.cat(indices) + first).to(device)
        ends = torch.cat(lengths).cumsum(0, dtype=torch.int32)
        options["cu_window_seqlens"] = functional.pad(ends, (1, 0)).to(device)
        return options

    def _lay_out_picture(self, *size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions of a picture's patches, their order by windows, the windows' lengths."""
        visual, grid = self._visual, torch.tensor([size])
        positions = vision_utils.get_vision_position_ids(grid, self._merge_size)
        if not hasattr(visual, "window_size"):
            return positions, torch.empty(0), torch.empty(0)
        index, ends = vision_utils.get_vision_window_index(
            grid, self._merge_size, visual.window_size, visual.patch_size
        )
        return positions, index, ends.diff()

    def group_windows(self, ends: Tensor) -> list[Group]:
        """Return windows by length, from where each begins and the last ends, `[W + 1]`."""
        # every block is handed the same tensor, and moving it off a GPU takes time
        if id(ends) not in self._groups:
            lengths = ends.diff().cpu()
            kinds = torch.unique(lengths)
            groups: list[Group] = [(int(kinds[0]), None)]
            if len(kinds) > 1:
                owner = torch.repeat_interleave(lengths, lengths)  # each patch's length
                groups = [(int(k), (owner == k).nonzero()[:, 0].to(ends.device)) for k in kinds]
            self._groups[id(ends)] = ends, groups  # while it is held, no other has its id
        return self._groups[id(ends)][1]

    @torch.no_grad()
    def compare(self) -> float:
        """Return how far states are from the encoder's own, relative to these, on noise."""
        visual, grids = self._visual, torch.tensor(_PROBE_GRIDS)
        random = torch.Generator().manual_seed(0)
        shape = int(grids.prod(-1).sum()), self._project.weight[0].numel()
        patches = torch.randn(shape, generator=random).to(visual.device, visual.dtype)
        grids = grids.to(visual.device)
        expected, found = (
            forward(patches, grids).pooler_output.float() for forward in (visual.forward, self)
        )
        return float((found - expected).norm() / expected.norm())


class _Attention:
    """What takes the place of an attention's `forward` while a `LeanVision` reads.

    Args:
        lean: It groups the windows.
        module: The attention.
    """

    def __init__(self, lean: LeanVision, module: Any) -> None:
        self.module, self._lean = module, lean
        self._qkv, self._out = module.qkv, module.proj
        self._num_heads, self._scale = module.num_heads, module.scaling

    def __call__(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **options: Any,
    ) -> Tensor:
        """Return `[P, D]` of `[P, D]`."""
        num_patches = len(hidden_states)
        heads = self._qkv(hidden_states).view(num_patches, 3, self._num_heads, -1)
        cos, sin = (table[None].float() for table in position_embeddings)
        turned = Rotation(cos, sin).turn(heads[:, :2].flatten(1, 2)[None].float())
        heads[:, :2] = turned[0].view_as(heads[:, :2])
        seen = torch.empty_like(hidden_states)
        for length, patches in self._lean.group_windows(cu_seqlens):
            part = heads if patches is None else heads[patches]
            query, key, value = part.unflatten(0, (-1, length)).permute(2, 0, 3, 1, 4)
            found = self._attend(query, key, value).flatten(0, 1)
            if patches is None:
                seen = found
            else:
                seen[patches] = found
        output: Tensor = self._out(seen)
        return output

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return `[W, L, H * E]`, what queries `[W, H, L, E]` see."""
        num_scores = query.numel() // query.shape[-1] * query.shape[2]
        if query.is_cpu and num_scores <= MOST_SCORES:
            return attend_by_products(query.transpose(1, 2), key, value, None, self._scale)
        seen = functional.scaled_dot_product_attention(query, key, value, scale=self._scale)
        return seen.transpose(1, 2).flatten(2)


def _check_patches(project: nn.Module) -> nn.Conv3d:
    """Return the convolution that embeds patches.

    Raises:
        ValueError: It is something else.
    """
    if (
        not isinstance(project, nn.Conv3d)
        or project.stride != project.kernel_size
        or project.padding != (0, 0, 0)
        or project.groups != 1
    ):
        raise ValueError(f"patches are embedded by {project}, not by a convolution without overlap")
    return project
