"""The pretraining LightningModule: language modelling, judged by exact thoughts."""

from __future__ import annotations

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from tracelib.data.collator import IGNORED_LABEL
from tracelib.losses.language_modeling import compute_lm_loss
from tracelib.types import EncoderInput


class PretrainingModule(LightningModule):
    """Trains every weight of a multimodal LLM on the response tokens.

    Args:
        model: The blank backbone.
        learning_rate: Peak of AdamW's cosine schedule.
        warmup_steps: Steps of linear warm-up.
        max_steps: Steps of the whole schedule.
        weight_decay: AdamW's weight decay.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        learning_rate: float,
        warmup_steps: int,
        max_steps: int,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.model = model
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.max_steps, self.weight_decay = max_steps, weight_decay

    def _predict(self, batch: EncoderInput) -> tuple[Tensor, Tensor]:
        """Return logits `[N, V]` of the positions before each target, and the targets `[N]`."""
        hidden = self.model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            mm_token_type_ids=batch.mm_token_type_ids,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        is_target = batch.labels[:, 1:] != IGNORED_LABEL
        return self.model.lm_head(hidden[:, :-1][is_target]), batch.labels[:, 1:][is_target]

    def training_step(self, batch: EncoderInput, batch_idx: int) -> Tensor:
        """Return the loss per response token."""
        loss = compute_lm_loss(*self._predict(batch))
        self.log("train/lm_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: EncoderInput, batch_idx: int) -> None:
        """Log the share of thoughts written exactly, per chain length (the batch's index).

        Under greedy decoding a thought is written exactly if and only if each token is the argmax
        after the ones before it, so one teacher-forced pass measures it.
        """
        logits, targets = self._predict(batch)
        is_target = batch.labels[:, 1:] != IGNORED_LABEL
        right = torch.ones_like(is_target)
        right[is_target] = logits.argmax(-1) == targets
        rate = right.all(-1).float().mean()
        self.log(
            f"val/exact_rationale/length_{batch_idx}", rate, prog_bar=True, batch_size=len(right)
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule."""
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=self.weight_decay,
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, self.warmup_steps, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
