"""An encoder of random weights: the shape of a model, without its checkpoint or tokenizer."""

from __future__ import annotations

from jsonargparse import Namespace
from torch import nn

from tracelib.models.backbone import LoRA
from tracelib.models.encoder import Encoder
from tracelib.models.shapes import build_random, read_config


class RandomEncoder(Encoder):
    """An encoder around a model that is made, not loaded.

    Args:
        settings: Arguments of `Encoder`, as a recipe has them; what reads weights is ignored.
        device: Where the weights are made.
    """

    def __init__(self, settings: Namespace, device: str) -> None:
        nn.Module.__init__(self)
        config = read_config(settings.backbone)
        self.lora = None if settings.lora is None else LoRA(**settings.lora.as_dict())
        self.fingerprint = "random"
        model = build_random(
            config,
            self.lora,
            settings.train_projector,
            settings.dtype,
            settings.gradient_checkpointing,
            settings.attention,
            settings.projector,
            device,
        )
        last = config.get_text_config().vocab_size - 1
        self._take_model(model, last, settings.read_offset, settings.attention, settings.projector)
        vision = config.vision_config.to_dict()
        special = (config.image_token_id, config.video_token_id, config.vision_start_token_id)
        self.image_token_id = config.image_token_id
        self.merge = vision["spatial_merge_size"]
        self.patch_features = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
        # Ids that mean nothing but themselves: those above the special ones, or else below.
        above, below = (max(special) + 1, self.emb_token_id), (0, min(special))
        self.plain_tokens = max(above, below, key=lambda ids: ids[1] - ids[0])
