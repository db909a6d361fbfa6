"""Embeddings of many chunks at the memory of one: each is encoded twice (GradCache).

First all chunks are embedded without gradient. The contrastive loss, which needs them all, gives
the gradient of each embedding. Then chunk by chunk is encoded again, now with gradient, and what
depends on a single chunk (language modelling, router) joins in that second pass.

Shapes: B sequences of a chunk, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from tracelib.models.encoder import Encoder, EncoderOutput
from tracelib.types import EncoderInput


@dataclass(frozen=True)
class CachedChunk:
    """A chunk that was embedded without gradient.

    Args:
        inputs: The chunk.
        embedding: `[B, D]` its embeddings, a leaf that asks for a gradient.
        cpu_state: State of the CPU's random numbers before.
        device_states: The same of each device, by number.

    References:
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup
        (arXiv 2101.06983), section 3.
    """

    inputs: EncoderInput
    embedding: Tensor
    cpu_state: Tensor
    device_states: tuple[list[int], list[Tensor]]

    @staticmethod
    def embed(encoder: Encoder, inputs: EncoderInput) -> CachedChunk:
        """Embed a chunk, wherever it lies, and keep what it takes to do so again."""
        moved = inputs.to(encoder.device)
        cpu_state, devices = torch.get_rng_state(), get_device_states(moved.input_ids)
        with torch.no_grad():
            embedding = encoder.embed(moved)
        return CachedChunk(inputs, embedding.requires_grad_(), cpu_state, devices)

    def encode_again(self, encoder: Encoder) -> EncoderOutput:
        """Encode with gradient, under the same random numbers (dropout); later ones stay as is."""
        devices, states = self.device_states
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu_state)
            set_device_states(devices, states)
            output: EncoderOutput = encoder(self.inputs.to(encoder.device))
        return output
