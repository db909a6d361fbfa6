"""Peak speed and memory of GPUs, by the names of the `plan` verb."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """A device to train on.

    Args:
        peak_flops: Dense bfloat16 matrix operations per second, accumulated in float32.
        memory_gib: Memory in GiB, as the driver reports it.
    """

    peak_flops: float
    memory_gib: float


# NVIDIA's data sheets; where those give speed with sparsity only, half of it. SXM boards of H100,
# H200 and H20.
GPUS = {
    "A100-40GB": GPU(312e12, 40.0),  # A100 data sheet
    "A100-80GB": GPU(312e12, 80.0),
    "H100-80GB": GPU(989.4e12, 79.6),  # H100 data sheet: 1,979 with sparsity
    "H200-141GB": GPU(989.4e12, 140.4),  # H200 data sheet: 1,979 with sparsity
    "H20-96GB": GPU(148e12, 95.6),  # H20 product brief
    "L40S-48GB": GPU(362.05e12, 45.0),  # L40S data sheet: 733 with sparsity
    "RTX4090-24GB": GPU(165.2e12, 24.0),  # Ada architecture white paper, appendix A
}
