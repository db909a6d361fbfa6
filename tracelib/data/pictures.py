"""From pictures to what a backbone reads of them, within a budget of image tokens.

Shapes: P patches, F features of a patch, I images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from PIL.Image import fromarray as from_array
from PIL.Image import new as new_image
from torch import Tensor

_MOST_RECORDS = 64  # read at once: more are no faster, and their patches are there several times

PROBE = new_image("RGB", (64, 64))
"""A picture to try a backbone with."""
_AS_BYTES = {"do_rescale": False, "do_normalize": False}


@dataclass(frozen=True)
class ImageSlot:
    """What stands for a picture among the tokens, for backbones whose pictures are all one size.

    Args:
        num_tokens: Image tokens of every picture.
        before: Text before them.
        after: Text behind them.
    """

    num_tokens: int
    before: str = ""
    after: str = ""


class PictureReader:
    """Turns the pictures of a record into patches.

    Args:
        image_processor: The backbone's, of transformers; changed here as `settings` say.
        name: The backbone, for errors.
        min_image_tokens: Fewest image tokens of a picture, unless its share of `max_image_tokens`
            is less; None keeps the backbone's own.
        max_image_tokens: Most image tokens of a record, shared evenly by its pictures; None keeps
            the backbone's own limit for each. A picture far longer than wide may need more, and so
            may one enlarged to a minimum close to its share.
        slot: What stands for a picture; None where the image processor tells the patches of each.
        settings: Settings of the image processor to change, by their own names.

    Attributes:
        scale: `[2, F]` mean and deviation of each feature of a patch, where patches are read as
            bytes; None where they are read as the backbone takes them.

    Raises:
        ValueError: The image processor does not know a setting, or gives what `slot` does not fit;
            a number of tokens is out of its range.
    """

    def __init__(
        self,
        image_processor: Any,
        name: str,
        min_image_tokens: int | None,
        max_image_tokens: int | None,
        slot: ImageSlot | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.image_processor, self.name, self.slot = image_processor, name, slot
        self.min_image_tokens, self.max_image_tokens = min_image_tokens, max_image_tokens
        known = image_processor.to_dict()
        for setting, value in settings.items():
            if setting not in known:
                raise ValueError(
                    f"the image processor of {name} has no {setting!r} (data.image_processor), "
                    f"only {sorted(known)}"
                )
            setattr(image_processor, setting, value)
        self._check_image_tokens()
        self._check_output()
        self.scale = self._find_scale() if slot is None else None

    def describe(self) -> str:
        """Return all that decides what becomes of a picture."""
        budget = f"{self.min_image_tokens} {self.max_image_tokens} {self.slot}"
        return f"{self.image_processor.to_json_string()} {budget}"

    def _check_image_tokens(self) -> None:
        least, most = self.min_image_tokens, self.max_image_tokens
        for name, value in (("min_image_tokens", least), ("max_image_tokens", most)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1 (data.{name})")
        if least is not None and most is not None and least > most:
            raise ValueError(
                f"min_image_tokens is {least}, more than max_image_tokens {most} "
                "(data.min_image_tokens)"
            )
        if least is not None and self.slot is not None:
            raise ValueError(
                f"min_image_tokens is {least}, but every picture of {self.name} has "
                f"{self.slot.num_tokens}: leave it null (data.min_image_tokens)"
            )

    def _check_output(self) -> None:
        given = self._process([[PROBE]])
        expected = {"pixel_values"} | ({"image_grid_thw"} if self.slot is None else set())
        if set(given) != expected:
            raise ValueError(
                f"the image processor of {self.name} gives {sorted(given)}, not "
                f"{sorted(expected)}: set data.image_slot where pictures are all one size, and "
                "data.image_processor for what it should leave out"
            )

    def _find_scale(self) -> Tensor | None:
        """Return mean and deviation `[2, F]` of a patch's features where bytes stand for floats.

        None unless they do to the last bit, which a picture with every level shows.
        """
        processor = self.image_processor
        channels = new_image("RGB", PROBE.size, (0, 1, 2))
        places = self._process([[channels]], **_AS_BYTES)["pixel_values"][0].long()
        scale = torch.tensor([processor.image_mean, processor.image_std])[:, places]
        levels = np.arange(3 * PROBE.width * PROBE.height, dtype=np.uint8)
        probe = [[from_array(levels.reshape(PROBE.height, PROBE.width, 3))]]
        packed = self._process(probe, **_AS_BYTES)["pixel_values"].to(torch.uint8)
        unpacked = (packed / 255 - scale[0]) / scale[1]
        return scale if torch.equal(unpacked, self._process(probe)["pixel_values"]) else None

    def _process(self, pictures: list[list[Image]], **settings: Any) -> Any:
        return self.image_processor(images=pictures, return_tensors="pt", **settings)

    def read(
        self, records: Sequence[Sequence[Image]]
    ) -> list[tuple[Tensor | None, Tensor | None, list[int]]]:
        """Return patches and grids of each record's pictures, and how many tokens each has.

        Patches are bytes where `scale` says what these stand for: a batch waits in a quarter of the
        memory.
        """
        found: list[tuple[Tensor | None, Tensor | None, list[int]]] = [(None, None, [])] * len(
            records
        )
        for places in _group_records([len(images) for images in records]):
            count = len(records[places[0]])
            pictures = [[image] for place in places for image in records[place]]
            as_bytes = {} if self.scale is None else _AS_BYTES
            given = self._process(pictures, **self._limit_size(count), **as_bytes)
            values = given["pixel_values"]
            if self.slot is not None:
                for place, part in zip(places, values.split(count), strict=True):
                    found[place] = part, None, [self.slot.num_tokens] * count
                continue
            grids = given["image_grid_thw"].split(count)
            num_patches = [int(grid.prod(-1).sum()) for grid in grids]
            merge = self.image_processor.merge_size**2
            if self.scale is not None:
                values = values.to(torch.uint8)
            parts = zip(places, values.split(num_patches), grids, strict=True)
            for place, part, grid in parts:
                # A copy does not keep the other records' patches.
                found[place] = part.clone(), grid, (grid.prod(-1) // merge).tolist()
        return found

    def _limit_size(self, num_images: int) -> dict[str, Any]:
        """Return the size in pixels between which each of a turn's pictures is resized."""
        least, most = self.min_image_tokens, self.max_image_tokens
        fewest = 1 if self.slot is None else self.slot.num_tokens
        if most is not None and most < num_images * fewest:
            raise ValueError(
                f"max_image_tokens is {most}, but a record has {num_images} pictures of at least "
                f"{fewest} tokens (data.max_image_tokens)"
            )
        if self.slot is not None or (least is None and most is None):
            return {}
        size = dict(self.image_processor.size)
        token_pixels = (self.image_processor.patch_size * self.image_processor.merge_size) ** 2
        if most is not None:
            size["longest_edge"] = most // num_images * token_pixels
        if least is not None:
            size["shortest_edge"] = least * token_pixels
        size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
        return {"size": size}


def _group_records(num_pictures: Sequence[int]) -> list[list[int]]:
    """Return the places of the records with pictures, in groups of one number of pictures.

    Such a group has one budget. A call of the image processor for each record takes twice as long.
    """
    groups = []
    for count in sorted(set(num_pictures) - {0}):
        places = [place for place, number in enumerate(num_pictures) if number == count]
        groups += [places[i : i + _MOST_RECORDS] for i in range(0, len(places), _MOST_RECORDS)]
    return groups
