"""Pictures of what UTAD makes of images: while it learns, and to explain a verdict."""

from typing import Final

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from inspectad.heatmap import region_level, render_overlay
from inspectad.manifest import Calibration
from inspectad.nn.pyramid_samples import grid
from inspectad.nn.two_stage import TwoStage, shares_of
from inspectad.records import ByteArray

COLUMNS: Final = 8
TITLES: Final = ("input", "impression", "reconstruction", "anomaly map")
_PANEL_PX: Final = 512
"""Longer side of a panel at most: no more than the network sees is in it, and four of them lie side by side."""
_BAND_PX: Final = 24
_GAP_PX: Final = 4


def draw_stages(module: TwoStage, images: Tensor) -> ByteArray:
    """Rows of `COLUMNS` columns: images, impressions, and, once stage 2 has begun, what is restored, and naive
    impressions.

    Args: images uint8 (B, S, S, 3), a few training images, on the module's device.
    Returns: uint8 (h, w, 3).
    """
    shown = images[:COLUMNS]
    with torch.no_grad():
        pixels = shares_of(shown)
        found, naive = module.reconstruct(pixels), module.naive(pixels)
    return grid([as_bytes(made) for made in (pixels, found.impression, found.restored, naive)])


def draw_impressions(impressions: nn.Module, images: Tensor) -> ByteArray:
    """The first two rows of `draw_stages`, while there is no second stage. Args: impressions: IE-Net."""
    pixels = shares_of(images[:COLUMNS])
    with torch.no_grad():
        drawn = impressions.decode(impressions.encode(pixels))  # type: ignore[operator]
    return grid([as_bytes(pixels), as_bytes(drawn)])


def as_bytes(pixels: Tensor) -> Tensor:
    """0..1 to uint8."""
    return (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)


def explain_two_stage(module: nn.Module, image: ByteArray, source: ByteArray, calibration: Calibration) -> ByteArray:
    """Input, impression, reconstruction and anomaly map side by side, in the shape of the source.

    Colours mean what they mean in heatmaps: none on what is usual, yellow at the map threshold.

    Args: module of ``fit``; image uint8 (S, S, 3) at its input size; source uint8 (h, w, 3).
    Returns: uint8 RGB; each panel's longer side is the source's, or `_PANEL_PX` if that is less.
    """
    assert isinstance(module, TwoStage)
    with torch.inference_mode():
        seen = torch.from_numpy(np.ascontiguousarray(image))[None].to(module.codes.device)
        pixels = shares_of(seen)
        found = module.reconstruct(pixels)
        scores, maps = module.judge(pixels, found)
    score, anomaly_map = float(scores[0]), maps[0].cpu().numpy()
    height, width = source.shape[:2]
    factor = min(1.0, _PANEL_PX / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = np.asarray(cv2.resize(source, size, interpolation=cv2.INTER_AREA), np.uint8)
    drawn = [as_bytes(made)[0].permute(1, 2, 0).cpu().numpy() for made in (found.impression, found.restored)]
    enlarged = [np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8) for picture in drawn]
    verdict = calibration.verdict(score)
    level = region_level(float(anomaly_map.max()), verdict, calibration.threshold, calibration.map_threshold)
    overlay = render_overlay(small, anomaly_map, level, "", verdict)
    titles = (*TITLES[:3], f"{TITLES[3]}: {verdict} {score / calibration.threshold:.2f}")
    return _side_by_side([small, *enlarged, overlay], titles)


def _side_by_side(panels: list[ByteArray], titles: tuple[str, ...]) -> ByteArray:
    """Panels of one size, each below its title, on white."""
    height, width = panels[0].shape[:2]
    step = width + _GAP_PX
    picture = np.full((height + _BAND_PX, step * len(panels) - _GAP_PX, 3), 255, np.uint8)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = number * step
        band = np.full((_BAND_PX, width, 3), 255, np.uint8)  # by itself, so that a long title stays above its panel
        cv2.putText(band, title, (2, _BAND_PX - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        picture[:_BAND_PX, left : left + width] = band
        picture[_BAND_PX:, left : left + width] = panel
    return picture
