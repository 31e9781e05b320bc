"""IE-Net of UTAD: an autoencoder of inception blocks, whose reconstruction is an *impression*: blurred, and free of
defects as far as it never learnt to draw any; with an information branch that describes the image in 128 numbers.

Source: Liu et al., "Unsupervised Two-stage Anomaly Detection" (arXiv 2103.11671), widths of the released networks.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODE: Final = 128
"""Numbers that the information branch describes an image by."""
REDUCTION: Final = 32
"""Sides of the input are so many times those of the latent map."""
LATENT: Final = 512
"""Channels of the latent map."""
_SLOPE: Final = 0.1
_EPSILON: Final = 1e-3


class Inception(nn.Module):
    """Four views of its input, by kernels of 1, 3 and 5 pixels and of the highest of 3 x 3, one beside the other."""

    def __init__(self, inputs: int, width: int) -> None:
        """Args: width: channels of each view; four times as many come out."""
        super().__init__()
        self.views = nn.ModuleList(nn.Conv2d(inputs, width, side, padding=side // 2, bias=False) for side in (1, 3, 5))
        self.highest = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(inputs, width, 1, bias=False))
        self.norm = nn.BatchNorm2d(4 * width, eps=_EPSILON)  # of each channel alone: one for all is one for each view

    def forward(self, x: Tensor) -> Tensor:
        """Args: (B, inputs, h, w). Returns: (B, 4 width, h, w)."""
        seen = [view(x) for view in self.views]
        return F.leaky_relu(self.norm(torch.cat([*seen, self.highest(x)], dim=1)), _SLOPE)


class ImpressionNet(nn.Module):
    """IE-Net. Images are (B, 3, H, W) in 0..1, sides multiples of twice `REDUCTION`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(Inception(3, 32), nn.MaxPool2d(4)),
            *(Inception(128, 32), nn.MaxPool2d(2)),
            *(Inception(128, 64), nn.MaxPool2d(2)),
            *(Inception(256, 128), nn.MaxPool2d(2)),
        )
        self.decoder = nn.Sequential(
            *(Inception(LATENT, 128), nn.Upsample(scale_factor=2)),
            *(Inception(512, 64), nn.Upsample(scale_factor=4)),
            *(Inception(256, 64), nn.Upsample(scale_factor=2)),
            *(Inception(256, 32), nn.Upsample(scale_factor=2)),
            nn.Conv2d(128, 3, 1),
        )
        self.squeeze = nn.Conv2d(LATENT, 64, 3, padding=1)
        self.expand = nn.Conv2d(64, LATENT, 3, padding=1)
        self.code = nn.Linear(LATENT, 2 * CODE)

    def encode(self, images: Tensor) -> Tensor:
        """Returns: the latent map z, (B, 512, H / 32, W / 32)."""
        latent: Tensor = self.encoder(images)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Returns: the impression m, (B, 3, H, W) in 0..1."""
        return torch.sigmoid(self.decoder(latent))

    def describe(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The information branch. Returns: mean and log variance of the code, (B, 128) each, and the reduced latent
        map that the mutual information is with, (B, 512, H / 64, W / 64)."""
        reduced = F.max_pool2d(latent, 2)
        expanded = self.expand(torch.relu(self.squeeze(reduced)))
        mean, log_variance = self.code(expanded.mean(dim=(2, 3))).chunk(2, dim=1)
        return mean, log_variance, reduced
