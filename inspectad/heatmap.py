"""From an anomaly map to what a person looks at: regions, and an overlay on the source image. Pure."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inspectad.records import Box, ByteArray, FloatArray, Verdict

MAX_BOXES: Final = 20  # a row stays readable; area_px counts all regions
_FULL_COLOUR = 2.0  # map value, as a multiple of the threshold, at which the colour scale ends
_CALM = 0.85  # below this share of the level nothing is coloured, so a good image looks like itself
_OPACITY = 0.55
_OUTLINE = (220, 0, 0)
_BLOCK = 40  # map pixels
_SMALL = 40  # times the thickness of a line: regions up to that length are framed


@dataclass(frozen=True, slots=True)
class Regions:
    """What of a map lies above a level, in source pixels.

    Attributes:
        area_px: source pixels above the level.
        boxes: bounding boxes, largest area first, at most `MAX_BOXES`.
        peak_xy: source pixel of the highest map value.
        level: the level used.
    """

    area_px: int
    boxes: tuple[Box, ...]
    peak_xy: tuple[int, int]
    level: float


def region_level(peak: float, verdict: Verdict, threshold: float, map_threshold: float) -> float:
    """Level that regions are cut at: the map threshold; on an NG image that stays below it, the image threshold.

    An NG image always shows where. Its score is a mean of values of the coarse map, so some of them exceed the
    threshold; should enlarging the map have flattened all of them, its highest point is shown.
    """
    if verdict is not Verdict.NG or peak > map_threshold:
        return map_threshold
    return threshold if peak > threshold else 0.98 * peak


def find_regions(anomaly_map: FloatArray, level: float, source_hw: tuple[int, int]) -> Regions:
    """Regions of a map above a level, scaled to the source image.

    Args:
        anomaly_map: (h, w) at the model's input size.
        level: in map units; a region is 8-connected and strictly above it.
        source_hw: size of the source image.
    """
    scale_y, scale_x = source_hw[0] / anomaly_map.shape[0], source_hw[1] / anomaly_map.shape[1]
    peak_y, peak_x = np.unravel_index(int(np.argmax(anomaly_map)), anomaly_map.shape)
    peak = (min(int((peak_x + 0.5) * scale_x), source_hw[1] - 1), min(int((peak_y + 0.5) * scale_y), source_hw[0] - 1))
    above = (anomaly_map > level).astype(np.uint8)
    area = round(int(above.sum()) * scale_x * scale_y)
    _, _, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    regions = sorted(stats[1:].tolist(), key=lambda s: (-s[cv2.CC_STAT_AREA], s[1], s[0]))
    boxes = tuple(_source_box(r, (anomaly_map.shape[0], anomaly_map.shape[1]), source_hw) for r in regions[:MAX_BOXES])
    return Regions(area, boxes, peak, level)


def _source_box(stats: list[int], map_hw: tuple[int, int], source_hw: tuple[int, int]) -> Box:
    """The source pixels that a box of map pixels touches, in whole numbers: rounding must not leave the image."""
    x, y, width, height = stats[:4]
    left, top = x * source_hw[1] // map_hw[1], y * source_hw[0] // map_hw[0]
    right, bottom = -(-(x + width) * source_hw[1] // map_hw[1]), -(-(y + height) * source_hw[0] // map_hw[0])
    return Box(left, top, right - left, bottom - top)


def render_overlay(
    image: ByteArray, anomaly_map: FloatArray, level: float, caption: str, verdict: Verdict
) -> ByteArray:
    """The source image with its map on it, at source resolution.

    One fixed colour scale, anchored at the level: nothing below 85 % of it, yellow at it, dark red from twice on.
    So colours mean the same on every image of a model, and a good image looks like itself.

    Args:
        image: (H, W, 3) RGB uint8, the source.
        anomaly_map: (h, w), any size.
        level: map value that contours are drawn at.
        caption: one line, drawn where the image is large enough to read it; "" for none.
    Returns: (H, W, 3) RGB uint8.
    """
    overlay = image.copy()
    _blend(overlay, anomaly_map, level)
    _draw_contours(overlay, anomaly_map, level)
    if caption:
        _draw_caption(overlay, caption, verdict)
    return overlay


def render_relevance(image: ByteArray, relevance: FloatArray) -> ByteArray:
    """An explanation over its source image: from blue (0) to red (1), as the field draws them, half transparent.

    Unlike `render_overlay` the scale is the image's own, so something is red on every image, a good one too.

    Args:
        image: (H, W, 3) RGB uint8, the source.
        relevance: (h, w) in 0..1, any size.
    Returns: (H, W, 3) RGB uint8.
    """
    enlarged = cv2.resize(relevance, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
    levels = np.clip(np.rint(enlarged * 255), 0, 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(image, 0.5, colours, 0.5, 0), np.uint8)


def _blend(overlay: ByteArray, anomaly_map: FloatArray, level: float) -> None:
    """Lay the colours over the image, in place and block by block, where there are any: most of most images is calm."""
    coloured = anomaly_map > _CALM * level
    if not coloured.any():
        return
    map_h, map_w = anomaly_map.shape
    for top in range(0, map_h, _BLOCK):
        for left in range(0, map_w, _BLOCK):
            right, bottom = min(left + _BLOCK, map_w), min(top + _BLOCK, map_h)
            # One map pixel more on each side, since the enlarged map fades into its neighbours.
            if coloured[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1].any():
                _blend_block(overlay, anomaly_map, level, (left, top, right, bottom))


def _blend_block(overlay: ByteArray, anomaly_map: FloatArray, level: float, block: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = block
    map_h, map_w = anomaly_map.shape
    x0, x1 = round(left * overlay.shape[1] / map_w), round(right * overlay.shape[1] / map_w)
    y0, y1 = round(top * overlay.shape[0] / map_h), round(bottom * overlay.shape[0] / map_h)
    if x1 == x0 or y1 == y0:
        return
    left, top = max(left - 2, 0), max(top - 2, 0)
    colours = _enlarge(
        _colourise(anomaly_map[top : bottom + 2, left : right + 2], level),
        (left, top),
        anomaly_map.shape,
        overlay.shape,
        (x0, y0, x1, y1),
    )
    weight = colours[..., 3].astype(np.float32) * np.float32(1 / 255)
    patch = np.ascontiguousarray(overlay[y0:y1, x0:x1])
    colour = np.ascontiguousarray(colours[..., :3])
    overlay[y0:y1, x0:x1] = cv2.blendLinear(colour, patch, weight, 1 - weight)


def _enlarge(
    colours: ByteArray, at: tuple[int, int], map_hw: tuple[int, ...], source_hw: tuple[int, ...], box: tuple[int, ...]
) -> ByteArray:
    """Part of the enlarged map, just as it would be within the whole of it. ``at``: left, top of the part's colours."""
    x0, y0, x1, y1 = box
    scale_x, scale_y = map_hw[1] / source_hw[1], map_hw[0] / source_hw[0]
    to_map = np.array(
        [[scale_x, 0, (x0 + 0.5) * scale_x - 0.5 - at[0]], [0, scale_y, (y0 + 0.5) * scale_y - 0.5 - at[1]]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(colours, to_map, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def _colour_table() -> npt.NDArray[np.uint8]:
    """(256, 4) RGBA from map value 0 to `_FULL_COLOUR` levels."""
    stops = np.array([0.0, _CALM, 1.0, 1.5, 2.0])
    red, green, blue = [255, 255, 255, 235, 140], [235, 235, 200, 60, 0], [150, 150, 0, 20, 20]
    opacity = [0, 0, _OPACITY * 200, _OPACITY * 255, _OPACITY * 300]
    at = np.linspace(0, _FULL_COLOUR, 256)
    return np.stack([np.interp(at, stops, c) for c in (red, green, blue, opacity)], axis=1).astype(np.uint8)


_TABLE: Final = _colour_table()


def _colourise(anomaly_map: FloatArray, level: float) -> npt.NDArray[np.uint8]:
    steps = np.clip(anomaly_map / max(level, 1e-12) * (255 / _FULL_COLOUR), 0, 255).astype(np.uint8)
    return np.asarray(_TABLE[steps], np.uint8)


def _draw_contours(overlay: ByteArray, anomaly_map: FloatArray, level: float) -> None:
    above = (anomaly_map > level).astype(np.uint8)
    if not above.any():
        return
    height, width = overlay.shape[:2]
    # The outline of the enlarged map, not the enlarged outline: steps of a coarse map would show on a large image.
    inner_hw = (min(height, max(1024, 2 * above.shape[0])), min(width, max(1024, 2 * above.shape[1])))
    fine = cv2.resize(anomaly_map, inner_hw[::-1], interpolation=cv2.INTER_LINEAR) > level
    contours, _ = cv2.findContours(fine.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    scale = np.array([width / inner_hw[1], height / inner_hw[0]])
    scaled = [np.round((c + 0.5) * scale - 0.5).astype(np.int32) for c in contours]
    thickness, place = max(1, round(max(height, width) / 400)), max(height, width) / max(above.shape)
    if thickness > place:
        # A line to be seen in the whole of a large image would cover a small region: it goes around it, at a distance.
        small = [contour for contour in scaled if max(cv2.boundingRect(contour)[2:]) < _SMALL * thickness]
        frames = [_frame(contour, 3 * thickness) for contour in small]
        cv2.polylines(overlay, frames, True, _OUTLINE, thickness)
        thickness = max(1, round(place / 2))
    cv2.polylines(overlay, scaled, True, _OUTLINE, thickness, cv2.LINE_AA)


def _frame(contour: npt.NDArray[np.int32], margin: int) -> npt.NDArray[np.int32]:
    """The rectangle around a contour (N, 1, 2), so far from it: (4, 1, 2)."""
    x, y, width, height = cv2.boundingRect(contour)
    left, top, right, bottom = x - margin, y - margin, x + width + margin, y + height + margin
    return np.array([[(left, top)], [(right, top)], [(right, bottom)], [(left, bottom)]], np.int32)


def _draw_caption(overlay: ByteArray, caption: str, verdict: Verdict) -> None:
    height, width = overlay.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = min(max(height, width) / 1000, 4.0)
    scale = max(scale, 0.35)
    (text_w, text_h), base = cv2.getTextSize(caption, font, scale, max(1, round(scale * 1.5)))
    if text_w > width - 4:
        scale *= (width - 4) / text_w
        (text_w, text_h), base = cv2.getTextSize(caption, font, scale, 1)
    if scale < 0.25 or text_h + base + 6 > height // 3:
        return  # too small to be read
    colour = (176, 0, 0) if verdict is Verdict.NG else (0, 100, 40)
    cv2.rectangle(overlay, (0, 0), (text_w + 8, text_h + base + 6), colour, -1)
    thickness = max(1, round(scale * 1.5))
    cv2.putText(overlay, caption, (4, text_h + 4), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
