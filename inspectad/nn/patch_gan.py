"""Patch networks of a pyramid: a discriminator and a generator a scale, and the exact resampling between scales.

Source: Sheynin, Benaim & Wolf (ICCV 2021) and their released code, which is built on SinGAN (Shaham, Dekel & Michaeli,
ICCV 2019). All convolutions are 3 x 3 and unpadded, five of them: an output sees 11 x 11 pixels, and maps are 10 pixels
smaller than what went in.
"""

import math
from functools import cache
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS: Final = 5
MARGIN: Final = LAYERS
"""Pixels that a map lacks on each side."""
RECEPTIVE_FIELD: Final = 2 * LAYERS + 1
COARSEST: Final = 25
FACTOR: Final = 0.75
"""Wanted between sides of neighbouring scales; the real one is chosen so that the coarsest is `COARSEST`."""
WIDTH: Final = 32
_SAME_WIDTH: Final = 4  # scales, after which it doubles
_SLOPE: Final = 0.2
_SCATTER: Final = 0.02


def sides_of(side: int, whole: int = 128) -> tuple[int, ...]:
    """Sides of the scales of a pyramid, coarsest first.

    Published: the input of ``whole`` pixels, reduced by about `FACTOR` down to `COARSEST`, without the scales above
    ``side``. Their code rounds up what is whole but for the last bit, and gets 26 and 41 for 25 and 40.

    Raises: ValueError: below `COARSEST`.
    """
    if side < COARSEST:
        raise ValueError(f"a pyramid starts at {COARSEST} pixels, {side} are too few")
    if side == COARSEST:
        return (side,)
    last = max(1, 1 + math.ceil(math.log(COARSEST / whole, FACTOR)) - math.ceil(math.log(min(1, side / whole), FACTOR)))
    factor = (COARSEST / side) ** (1 / last)
    return tuple(math.ceil(side * factor**i - 1e-6) for i in range(last, -1, -1))


def width_of(scale: int) -> int:
    """Channels of a scale's networks, the coarsest being 0."""
    return WIDTH << (scale // _SAME_WIDTH)


class Discriminator(nn.Module):
    """Logits of every patch: which transformation was applied, or (the last class) that the image was generated."""

    def __init__(self, classes: int, width: int) -> None:
        """Args: classes: transformations and, if there is a generator, one more."""
        super().__init__()
        self.body = _body(3, width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Args: pixels (B, 3, S, S) in -1..1. Returns: (B, classes, S - 10, S - 10)."""
        logits: Tensor = self.body(pixels)
        return logits


class Generator(nn.Module):
    """What a scale adds to the image of the scale before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = _body(4, width, 3)

    def forward(self, noise: Tensor, previous: Tensor, index: Tensor) -> Tensor:
        """Args:
            noise: (B, 3, S, S), of its amplitude.
            previous: image of the scale before, resampled, (B, 3, S, S); zeros at the coarsest.
            index: (B,) which training image it is like.

        Returns: (B, 3, S, S).
        """
        seen = F.pad(noise + previous, (MARGIN,) * 4)
        plane = index.to(seen.dtype).view(-1, 1, 1, 1).expand(-1, 1, *seen.shape[-2:])
        return torch.tanh(self.body(torch.cat([seen, plane], dim=1))) + previous


def _body(inputs: int, width: int, outputs: int) -> nn.Sequential:
    channels = [inputs, *[width] * (LAYERS - 1)]
    blocks: list[nn.Module] = []
    for before, after in pairwise(channels):
        blocks += [nn.Conv2d(before, after, 3), nn.BatchNorm2d(after), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*blocks, nn.Conv2d(width, outputs, 3))


def start(network: nn.Module, random: torch.Generator) -> None:
    """Random weights, from this generator alone: convolutions N(0, .02), normalisations N(1, .02), no biases."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
                module.weight.normal_(mean, _SCATTER, generator=random)
                assert module.bias is not None
                module.bias.zero_()


@cache
def resampling(before: int, after: int) -> Tensor:
    """(after, before) float32: rows that weigh pixels as torch's antialiased bicubic resizing does."""
    eye = torch.eye(before)[None, None]
    return F.interpolate(eye, (after, before), mode="bicubic", antialias=True, align_corners=False)[0, 0]


def resample(images: Tensor, matrix: Tensor) -> Tensor:
    """Args: images (B, C, S, S) in -1..1; matrix (s, S). Returns: (B, C, s, s), kept in -1..1 as 8-bit images are.

    Two products, which every runtime has and which are the same on each; their code also rounds to 8 bits, which adds
    noise and nothing else.
    """
    return (matrix @ images @ matrix.T).clamp(-1, 1)
