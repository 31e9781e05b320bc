"""The parts of a pyramid: how it is to be trained, its scales, and what their generators make of noise.

Source: Sheynin, Benaim & Wolf (ICCV 2021), after SinGAN (Shaham, Dekel & Michaeli, ICCV 2019).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from inspectad.nn.patch_gan import Discriminator, Generator, resample, resampling
from inspectad.nn.transformations import Transformation

UPDATES: Final = 3
"""Of the discriminator in each step, and then as many of the generator."""


@dataclass(frozen=True, slots=True)
class PyramidPlan:
    """What is trained, and for how long.

    Attributes:
        sides: of the scales, coarsest first.
        steps: of each scale, of `UPDATES` updates of either network.
        with_generator: without, discriminators tell the transformations of the training images apart and nothing else.
    """

    sides: tuple[int, ...]
    transformations: tuple[Transformation, ...]
    steps: int
    seed: int
    with_generator: bool = True
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.5, 0.999)

    def rate_of(self, step: int) -> float:
        """The discriminator's learning rate, a tenth from half of the steps on; the generator's stays."""
        return self.learning_rate * (0.1 if step >= max(1, self.steps // 2) else 1.0)

    @property
    def classes(self) -> int:
        """Of the discriminators' logits; the last one is "generated", where there is a generator."""
        return len(self.transformations) + self.with_generator


@dataclass(slots=True)
class Scale:
    """One scale, finished or at work.

    Attributes:
        side: of its images.
        amplitudes: of the noise, (N,).
        fixed: the noise of the reconstruction, (1, 3, side, side).
        step: steps done.
        losses: last ones of the discriminator, the generator and the reconstruction.
    """

    side: int
    discriminator: Discriminator
    generator: Generator
    amplitudes: Tensor
    fixed: Tensor
    step: int = 0
    losses: tuple[float, ...] = (math.nan, math.nan, math.nan)

    def freeze(self) -> None:
        """Nothing of it learns any more."""
        for network in (self.discriminator, self.generator):
            network.eval().requires_grad_(False)
            network.zero_grad()


def pyramid_images(images: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """Images uint8 (N, S, S, 3) at each side: (N, 3, side, side) in -1..1, each reduced from the images themselves."""
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return [resample(pixels, resampling(pixels.shape[-1], side).to(pixels.device)) for side in sides]


def noise(images: int, side: int, number: int, random: torch.Generator) -> Tensor:
    """(B, 3, side, side) standard normal; at the coarsest scale the three channels are equal."""
    channels = 1 if number == 0 else 3
    return torch.randn(images, channels, side, side, generator=random).expand(-1, 3, -1, -1)


def generate(scales: Sequence[Scale], side: int, images: Tensor, random: torch.Generator | None) -> Tensor:
    """What finished scales make of noise, resampled to ``side``.

    Args: images (B,) which training images it is to be like; random: None for the noise of the reconstruction.
    Returns: (B, 3, side, side), zeros of no scales.
    """
    previous = torch.zeros(len(images), 3, side, side, device=images.device)
    for number, scale in enumerate(scales):
        if number == 0:
            previous = previous.new_zeros(len(images), 3, scale.side, scale.side)
        made = generated(scale, number, previous, images, random)
        following = scales[number + 1].side if number + 1 < len(scales) else side
        previous = resample(made.float(), resampling(scale.side, following).to(made.device))
    return previous


def generated(scale: Scale, number: int, previous: Tensor, images: Tensor, random: torch.Generator | None) -> Tensor:
    drawn = scale.fixed if random is None else noise(len(images), scale.side, number, random).to(images.device)
    made: Tensor = scale.generator(scale.amplitudes[images].view(-1, 1, 1, 1) * drawn, previous, images)
    return made
