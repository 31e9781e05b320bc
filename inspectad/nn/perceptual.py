"""How an image differs from a reconstruction to the eye of a network that was trained on photographs. Pure.

Source: Zhang, Isola, Efros, Shechtman & Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(CVPR 2018): vectors of the network's maps, of length 1 at each place, and the squares of what they differ by; all
channels weigh the same, as in their baseline without learnt weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from inspectad.nn.smoothing import enlarge

_LEAST = 1e-6  # of a vector's squared length


def perceptual_distance(first: Sequence[Tensor], second: Sequence[Tensor], size_hw: tuple[int, int]) -> Tensor:
    """Args: maps of a backbone, (B, C, h, w) each, of either image. Returns: (B, 1, H, W), 0..4, 0 where equal."""
    apart = [
        enlarge((_unit(a) - _unit(b)).square().sum(dim=1, keepdim=True), size_hw)
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(apart).mean(dim=0)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(dim=1, keepdim=True) + _LEAST)
