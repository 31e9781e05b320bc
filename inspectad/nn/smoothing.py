"""Smoothing and enlarging of anomaly maps, by operations that every runtime has."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GaussianBlur(nn.Module):
    """Separable Gaussian on (B, 1, h, w) maps, edges replicated."""

    kernel: Tensor

    def __init__(self, sigma: float) -> None:
        """Args: sigma in pixels of the map. The kernel reaches out to 4 sigma, where it is below 0.04 %."""
        super().__init__()
        self.radius = max(1, math.ceil(4 * sigma))
        offsets = torch.arange(-self.radius, self.radius + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        r = self.radius
        padded = F.pad(maps, (r, r, r, r), mode="replicate")
        rows = F.conv2d(padded, self.kernel.view(1, 1, 1, -1))
        return F.conv2d(rows, self.kernel.view(1, 1, -1, 1))


def enlarge(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Maps (B, 1, h, w) to (B, 1, H, W), bilinear."""
    if maps.shape[-2:] == size_hw:
        return maps
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=False)
