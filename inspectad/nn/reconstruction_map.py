"""How an image differs from its reconstruction, place by place. Pure.

Source: UTAD's specification: r = (1 - MS-SSIM map) / 2 + L1 / 2, e = r(x, x') + max(0, r(m, m') - r(x', m)), where x'
is the image as it should be, m its impression and m' the "naive" impression, which keeps the defect. Structural
similarity: Wang, Bovik, Sheikh & Simoncelli (IEEE TIP 2004), windows of 11 pixels and sigma 1.5; of several scales:
Wang, Simoncelli & Bovik (Asilomar 2003), the finest three of their five weights, scaled to add up to 1. The released
combination adds 8-bit maps, which overflow, and subtracts a variance in other units; it is not ported.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from inspectad.nn.smoothing import enlarge

_WINDOW: Final = 11
_SIGMA: Final = 1.5
_WEIGHTS: Final = (0.0448, 0.2856, 0.3001)
_C1, _C2 = 0.01**2, 0.03**2
_LEAST: Final = 1e-3  # of a similarity, which is negative where one image is the other's negative


def residual(first: Tensor, second: Tensor) -> Tensor:
    """r: half of what is unlike in structure, half of the mean difference.

    Args: (B, 3, H, W) in 0..1, sides multiples of 4. Returns: (B, 1, H, W) in 0..1, 0 where equal.
    """
    apart = (first - second).abs().mean(dim=1, keepdim=True)
    unlike = 1 - ms_ssim_map(first.mean(dim=1, keepdim=True), second.mean(dim=1, keepdim=True))
    return 0.5 * unlike + 0.5 * apart


def anomaly_evidence(image: Tensor, impression: Tensor, restored: Tensor, naive: Tensor) -> Tensor:
    """e, >= 0: 0 where all of them are equal. Args: (B, 3, H, W) in 0..1. Returns: (B, 1, H, W)."""
    kept = residual(impression, naive) - residual(restored, impression)
    return residual(image, restored) + torch.relu(kept)


def ms_ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """Similarity in structure around each pixel, over three scales. Args: grey (B, 1, H, W). Returns: that shape."""
    size = (first.shape[2], first.shape[3])
    logs = torch.zeros_like(first)
    for number, weight in enumerate(_WEIGHTS):
        if number:
            first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
        similar = _similarity(first, second, with_luminance=number == len(_WEIGHTS) - 1)
        logs = logs + weight / sum(_WEIGHTS) * enlarge(similar.clamp(_LEAST, 1.0).log(), size)
    return logs.exp()


def _similarity(first: Tensor, second: Tensor, *, with_luminance: bool) -> Tensor:
    """Contrast and structure, on the coarsest scale luminance too, in windows whose edges are reflected."""
    mean_1, mean_2 = _windowed(first), _windowed(second)
    variance_1 = _windowed(first.square()) - mean_1.square()
    variance_2 = _windowed(second.square()) - mean_2.square()
    together = _windowed(first * second) - mean_1 * mean_2
    similar = (2 * together + _C2) / (variance_1 + variance_2 + _C2)
    if with_luminance:
        similar = similar * (2 * mean_1 * mean_2 + _C1) / (mean_1.square() + mean_2.square() + _C1)
    return similar


def _windowed(x: Tensor) -> Tensor:
    """Gaussian mean. Args: (B, 1, h, w), sides of at least 6."""
    half = _WINDOW // 2
    offsets = torch.arange(-half, half + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / _SIGMA).square())
    kernel = kernel / kernel.sum()
    padded = F.pad(x, (half,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
