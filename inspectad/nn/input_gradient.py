"""Which pixels an image score depends on most: the explanation of the deviation network's authors.

Source: Pang, Ding, Shen & van den Hengel (arXiv 2108.00462, 2021) and their released code, after Simonyan, Vedaldi &
Zisserman, "Deep Inside Convolutional Networks" (2014).
"""

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import torch
from torch import Tensor

from inspectad.records import ByteArray, FloatArray

_HIGH_PERCENT: Final = 99.0  # gradients have a few extreme pixels, which would leave the others dark
_SIGMA_PX: Final = 4.0


def input_gradient(score: Callable[[Tensor], Tensor], image: ByteArray, device: torch.device | str) -> FloatArray:
    """Gradient of an image's score with respect to its pixels, absolute values summed over the channels.

    Args:
        score: pixels float32 (1, 3, H, W) in 0..255 to the score (1,).
        image: uint8 (H, W, 3).
    Returns: float32 (H, W), at least 0.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].to(device).permute(0, 3, 1, 2).float()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(pixels.requires_grad_()).sum(), pixels)
    return np.asarray(gradient[0].abs().sum(dim=0).cpu().numpy(), np.float32)


def relevance(gradient: FloatArray) -> FloatArray:
    """The gradient on a scale of its own image: (v - min) / (99th percentile - min), 0 to 1, then smoothed.

    Args and returns: float32 (H, W); all 0 for a gradient that is the same everywhere.
    """
    low, high = float(gradient.min()), float(np.percentile(gradient, _HIGH_PERCENT))
    if high <= low:
        return np.zeros_like(gradient)
    scaled = np.clip((gradient - low) / (high - low), 0, 1)
    return np.asarray(cv2.GaussianBlur(scaled, (0, 0), _SIGMA_PX), np.float32)
