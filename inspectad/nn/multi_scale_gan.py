"""Discriminators that look at an image in three sizes, and the losses of least squares that they and generators have.

Source: least squares GAN (Mao et al., ICCV 2017); several scales as in MUNIT (Huang et al., ECCV 2018), which UTAD's
two stages both have.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.expert_net import InstanceNorm

IMPRESSION_WIDTHS: Final = (32, 32, 32, 32)
"""Of IE-Net's discriminator; its middle two layers are normalised."""
EXPERT_WIDTHS: Final = (64, 128, 256, 512)
"""Of Expert-Net's two, without a normalisation. The released configuration has no depth: MUNIT's."""
SCALES: Final = 3
_SLOPE: Final = 0.2


class MultiScaleDiscriminator(nn.Module):
    """Patch by patch, whether an image is real (1) or made (0), at full size, half of it and a quarter."""

    def __init__(self, widths: Sequence[int], normalised: Sequence[int] = ()) -> None:
        """Args: widths: of the layers, each of which halves the map; normalised: numbers of those that are."""
        super().__init__()
        self.scales = nn.ModuleList(_patch_network(widths, normalised) for _ in range(SCALES))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Args: images (B, 3, H, W). Returns: (B, 1, h, w) of each scale."""
        answers = []
        for number, scale in enumerate(self.scales):
            if number:
                images = F.avg_pool2d(images, 3, 2, 1, count_include_pad=False)
            answers.append(scale(images))
        return answers


def _patch_network(widths: Sequence[int], normalised: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise((3, *widths))):
        layers.append(nn.Conv2d(before, after, 4, 2, 1, padding_mode="reflect"))
        if number in normalised:
            layers.append(InstanceNorm())
        layers.append(nn.LeakyReLU(_SLOPE))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))


def discriminator_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Sum over the scales of E[(D(real) - 1)^2] + E[D(made)^2]: .5 a scale where all answers are .5."""
    return _distance(real, 1.0) + _distance(made, 0.0)


def generator_loss(made: Sequence[Tensor]) -> Tensor:
    """Sum over the scales of E[(D(made) - 1)^2]."""
    return _distance(made, 1.0)


def _distance(answers: Sequence[Tensor], wanted: float) -> Tensor:
    return torch.stack([(answer.float() - wanted).square().mean() for answer in answers]).sum()
