"""Random views of images for contrastive learning, and which places of two views show the same spot. Batched, on any
device; all random numbers come from a generator on the CPU, so that a seed gives the same views everywhere.

Source of the published set: SimCLR (Chen et al., ICML 2020), with the values of our specification; the inspection set
leaves out what makes a defect of a good part: heavy crops and changes of hue.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from inspectad.pose import Pose

_MIRRORS: Final = {"left-right": (-1.0, 1.0), "up-down": (1.0, -1.0), "half turn": (-1.0, -1.0)}
_YIQ: Final = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_BLUR_SIGMAS: Final = (0.1, 2.0)  # pixels
_CANDIDATES: Final = 4  # points tried for each one wanted


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How views differ from the image.

    Attributes:
        least_crop: share of the image's area that a crop keeps at least.
        mirrors: keys of `inspectad.pose.MIRRORS` by which views may be mirrored, each as likely as none.
        degrees: turned by so much at most, either way.
        light: brightness, contrast and saturation change by a factor of so much at most, either way.
        hue: turned by so much of the circle at most.
        grey, blur: share of the views that lose their colour, or are blurred.
    """

    least_crop: float
    mirrors: tuple[str, ...]
    degrees: float
    light: float
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0


def augmentation_named(name: str, pose: Pose) -> Augmentation:
    """Args: name: ``inspection`` or ``paper``; pose: in which ways parts lie, which the paper's set does not ask."""
    if name == "paper":
        return Augmentation(0.5, ("left-right",), 0.0, 0.4, hue=0.1, grey=0.2, blur=0.5)
    return Augmentation(0.7, pose.mirrors, 180.0 if pose.turns > 1 else 5.0, 0.1)


def draw_matrices(count: int, size_hw: tuple[int, int], kind: Augmentation, random: torch.Generator) -> Tensor:
    """Maps from places in the view to places in the image, both -1..1 as (x, y): (count, 2, 3)."""
    height, width = size_hw
    side = _uniform(count, kind.least_crop, 1.0, random).sqrt()
    angle = _uniform(count, -kind.degrees, kind.degrees, random) * (math.pi / 180)
    signs = torch.tensor([(1.0, 1.0), *(_MIRRORS[name] for name in kind.mirrors)])
    mirror = signs[torch.randint(len(signs), (count,), generator=random)]
    shift = (1 - side)[:, None] * (2 * torch.rand(count, 2, generator=random) - 1)
    cos, sin = angle.cos() * side, angle.sin() * side
    rows = (cos * mirror[:, 0], -sin * mirror[:, 1] * (height / width), sin * mirror[:, 0] * (width / height))
    linear = torch.stack([*rows, cos * mirror[:, 1]], dim=1).view(count, 2, 2)
    return torch.cat([linear, shift[:, :, None]], dim=2)


def view(images: Tensor, matrices: Tensor, kind: Augmentation, random: torch.Generator) -> Tensor:
    """Views of images. Args: images (B, 3, H, W) in 0..255; matrices (B, 2, 3). Returns: the same shape and range."""
    grid = F.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    seen = _relit(turned, kind, random)
    return _blurred(seen, kind.blur, random) if kind.blur else seen


def shared_points(first: Tensor, second: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places that two views of each image both show: for each view (B, count, 2), -1..1 as (x, y).

    Args: first, second: matrices (B, 2, 3) of the views. Where the views share too little, places beyond the edge of
    the second one are among them; whoever reads there gets the edge.
    """
    places = 2 * torch.rand(len(first), _CANDIDATES * count, 2, generator=random) - 1
    in_image = places @ first[:, :, :2].mT + first[:, None, :, 2]
    in_second = (in_image - second[:, None, :, 2]) @ torch.linalg.inv(second[:, :, :2]).mT
    order = (in_second.abs() > 1).any(dim=2).float().argsort(dim=1, stable=True)[:, :count, None].expand(-1, -1, 2)
    return places.gather(1, order), in_second.gather(1, order)


def read_points(maps: Tensor, points: Tensor) -> Tensor:
    """Vectors of maps at places between their cells. Args: maps (B, C, h, w); points (B, P, 2). Returns: (B, P, C)."""
    grid = points.to(maps.device, maps.dtype)[:, :, None]
    found = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return found.squeeze(3).mT


def _uniform(count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=random)


def _relit(images: Tensor, kind: Augmentation, random: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation, hue and loss of colour, each an affine map of the three channels."""
    count = len(images)
    bright, contrast, colour = (_uniform(count, 1 - kind.light, 1 + kind.light, random) for _ in range(3))
    angle = _uniform(count, -kind.hue, kind.hue, random) * (2 * math.pi)
    colour = colour * (torch.rand(count, generator=random) >= kind.grey)
    chroma = torch.zeros(count, 3, 3)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = colour * angle.cos()
    chroma[:, 1, 2], chroma[:, 2, 1] = -colour * angle.sin(), colour * angle.sin()
    mixing = (bright * contrast)[:, None, None] * (torch.linalg.inv(_YIQ) @ chroma @ _YIQ)
    mixed = torch.einsum("bij,bjhw->bihw", mixing.to(images.device), images)
    mean = (bright * (1 - contrast)).to(images.device).view(-1, 1, 1, 1) * images.mean(dim=(1, 2, 3), keepdim=True)
    return (mixed + mean).clamp(0, 255)


def _blurred(images: Tensor, share: float, random: torch.Generator) -> Tensor:
    """A share of the images smoothed by a Gaussian of random width."""
    count, channels = images.shape[:2]
    sigmas = _uniform(count, *_BLUR_SIGMAS, random)
    sigmas = torch.where(torch.rand(count, generator=random) < share, sigmas, 1e-3)
    radius = math.ceil(3 * _BLUR_SIGMAS[1])
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0).to(images.device)
    flat = F.pad(images, (radius,) * 4, mode="replicate").flatten(0, 1)[None]
    rows = F.conv2d(flat, kernels[:, None, None, :], groups=count * channels)
    return F.conv2d(rows, kernels[:, None, :, None], groups=count * channels).view_as(images)
