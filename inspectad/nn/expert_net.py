"""Expert-Net of UTAD: a generator that takes an image apart into content, where things are, and detail, what they look
like, and puts the content of one image and the detail of another together.

Source: Liu et al., "Unsupervised Two-stage Anomaly Detection" (arXiv 2103.11671), after MUNIT (Huang et al., ECCV 2018)
and adaptive instance normalisation (Huang & Belongie, ICCV 2017). One generator is of images, another of impressions.
Written with functional normalisations throughout: the usual trick for AdaIN, weights put into a module as attributes,
is exported as another operation without an error (`tests/test_utad.py`).
"""

from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DETAIL: Final = 8
"""Numbers that the detail of an image is."""
CONTENT: Final = 256
"""Channels of the content."""
_ADAPTED: Final = 4  # convolutions of the decoder whose output the detail shifts and scales
_HIDDEN: Final = 256
_EPSILON: Final = 1e-5


def instance_norm(x: Tensor) -> Tensor:
    """Each channel of each image to mean 0 and variance 1. Args: (B, C, h, w)."""
    return F.instance_norm(x, eps=_EPSILON)


def adaptive_instance_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaIN: mean ``shift`` and standard deviation ``scale`` (B, C) for the channels of x (B, C, h, w)."""
    return instance_norm(x) * scale[:, :, None, None] + shift[:, :, None, None]


class ImageNorm(nn.Module):
    """Layer normalisation of each image by itself, whatever the batch, as in MUNIT: a scale and a shift a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 1, self.weight, self.bias, _EPSILON)


class InstanceNorm(nn.Module):
    """`instance_norm` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x)


def _conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    padding = (side - 1) // 2
    return nn.Conv2d(inputs, outputs, side, stride, padding, padding_mode="reflect")


class Residual(nn.Module):
    """Two convolutions beside their input, each followed by a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _conv(CONTENT, CONTENT, 3), _conv(CONTENT, CONTENT, 3)

    def forward(self, x: Tensor, shifts: tuple[Tensor, Tensor] | None, scales: tuple[Tensor, Tensor] | None) -> Tensor:
        """Args: shifts and scales of AdaIN, (B, 256) for each convolution; None to normalise alone."""
        if shifts is None or scales is None:
            return x + instance_norm(self.second(torch.relu(instance_norm(self.first(x)))))
        within = torch.relu(adaptive_instance_norm(self.first(x), shifts[0], scales[0]))
        return x + adaptive_instance_norm(self.second(within), shifts[1], scales[1])


class Generator(nn.Module):
    """Content encoder, detail encoder and decoder. Images are (B, 3, H, W) in -1..1, sides multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(_conv(3, 64, 7), InstanceNorm(), nn.ReLU()),
            *(_conv(64, 128, 4, 2), InstanceNorm(), nn.ReLU()),
            *(_conv(128, CONTENT, 4, 2), InstanceNorm(), nn.ReLU()),
        )
        self.places = nn.ModuleList(Residual() for _ in range(2))
        layers: list[nn.Module] = [_conv(3, 64, 7), nn.ReLU()]
        for before, after in pairwise((64, 128, 256, 256, 256)):
            layers += [_conv(before, after, 4, 2), nn.ReLU()]
        self.looks = nn.Sequential(*layers)
        self.looks_code = nn.Linear(256, DETAIL)  # a convolution of 1 x 1 on what is averaged
        self.adapt = nn.Sequential(
            *(nn.Linear(DETAIL, _HIDDEN), nn.ReLU()),
            *(nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU()),
            nn.Linear(_HIDDEN, 2 * _ADAPTED * CONTENT),
        )
        self.adapted = nn.ModuleList(Residual() for _ in range(2))
        self.draw = nn.Sequential(
            *(nn.Upsample(scale_factor=2), _conv(CONTENT, 128, 5), ImageNorm(128), nn.ReLU()),
            *(nn.Upsample(scale_factor=2), _conv(128, 64, 5), ImageNorm(64), nn.ReLU()),
            _conv(64, 3, 7),
        )

    def content(self, images: Tensor) -> Tensor:
        """Where things are: (B, 256, H / 4, W / 4)."""
        x: Tensor = self.stem(images)
        for block in self.places:
            x = block(x, None, None)
        return x

    def detail(self, images: Tensor) -> Tensor:
        """What they look like: (B, 8)."""
        code: Tensor = self.looks_code(self.looks(images).mean(dim=(2, 3)))
        return code

    def decode(self, content: Tensor, detail: Tensor) -> Tensor:
        """Args: content (B, 256, h, w), detail (B, 8), of the same image or of two. Returns: (B, 3, 4 h, 4 w)."""
        numbers = self.adapt(detail).view(-1, _ADAPTED, 2, CONTENT)
        x = content
        for place, block in enumerate(self.adapted):
            first, second = numbers[:, 2 * place], numbers[:, 2 * place + 1]
            x = block(x, (first[:, 0], second[:, 0]), (first[:, 1], second[:, 1]))
        return torch.tanh(self.draw(x))


def start(network: nn.Module, random: torch.Generator) -> None:
    """Random weights, from this generator alone: Kaiming's normal of the fan-in, no biases; normalisations as they are.

    The last layer of `Generator.adapt` answers with scales near 1 at first, so that content is not lost at the start.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan) ** 0.5, generator=random)
                if module.bias is not None:
                    module.bias.zero_()
        if isinstance(network, Generator):
            last = network.adapt[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
            last.bias.view(_ADAPTED, 2, CONTENT)[:, 1] = 1.0


def as_signed(images: Tensor) -> Tensor:
    """0..1 to -1..1."""
    return images * 2 - 1


def as_shares(images: Tensor) -> Tensor:
    """-1..1 to 0..1."""
    return (images + 1) / 2
