"""Altered copies of the training images: the nearest thing to further good images that a few images can give."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from inspectad.nn.patch_gan import resample, resampling

_LEAST_SIDE: Final = 0.85
"""Of an image's side: crops are so long at least."""
_LIGHT: Final = 0.1
"""Brightness and contrast change by a factor of so much at most, either way."""


def altered_copies(images: Tensor, count: int, seed: int) -> Tensor:
    """Crops of 85 % of the side and more, enlarged to the whole again, in slightly other light.

    Args: images uint8 (N, S, S, 3); count: how many in all, from each image in turn.
    Returns: (count, S, S, 3) uint8, on the same device; the same for the same seed.
    """
    random = np.random.default_rng((seed, count))
    side = images.shape[1]
    copies = []
    for number in range(count):
        crop = int(random.integers(round(_LEAST_SIDE * side), side + 1))
        top, left = (int(v) for v in random.integers(0, side - crop + 1, 2))
        brightness, contrast = (float(v) for v in random.uniform(1 - _LIGHT, 1 + _LIGHT, 2))
        pixels = images[number % len(images), top : top + crop, left : left + crop].permute(2, 0, 1)[None]
        enlarged = resample(pixels.float() / 127.5 - 1, resampling(crop, side).to(images.device))
        lit = ((enlarged + 1) * 127.5) * brightness
        mean = lit.mean()
        copies.append((mean + contrast * (lit - mean)).round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0))
    return torch.stack(copies)
