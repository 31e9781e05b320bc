"""A scratch three pixels wide on a plate of 24 megapixels: whole images against tiles.

    python examples/large_plate.py                      # 6,000 x 4,000 px, 6 good plates teach
    python examples/large_plate.py --width 1500 --good 4     # the same, smaller

Needs: inspectad[train]. Renders a milled plate with holes, a window and a printed number, lit from one side; the good
plates differ in brushing, light, position and noise. Trains on whole images and on tiles, scans one scratched plate
and one good one with each model, and prints what they say.
"""

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np

import inspectad
from inspectad.detector import OnnxDetector
from inspectad.records import Inspection
from inspectad.scan import ScanConfig, scan

HOLES = ((0.08, 0.10), (0.92, 0.10), (0.08, 0.90), (0.92, 0.90), (0.30, 0.62), (0.70, 0.35), (0.52, 0.80))
HOLE_PX = 56  # radius: features of a large plate are as large as those of a small one, there is more room between
SCRATCH_PX = 3


def render_plate(seed: int, size_hw: tuple[int, int], scratch: tuple[int, int, int, float] | None = None) -> np.ndarray:
    """A plate that fills the frame, uint8 (H, W, 3).

    Args: seed: of brushing, light, position and noise; scratch: (x, y) of its middle, its length in pixels and its angle
    in radians; three pixels wide, a bright and a dark flank.
    """
    rng = np.random.default_rng([seed, *size_hw])
    height, width = size_hw
    grain = rng.standard_normal((height, width), np.float32)
    levels = 120 + 9 * cv2.blur(grain, (41, 1)) * 6.4**0.5 + 3 * cv2.blur(grain[::-1], (201, 1)) * 14**0.5
    at = rng.integers(-6, 7, 2)
    depth = np.zeros(size_hw, np.uint8)
    for x, y in HOLES:
        centre = (round(x * width) + int(at[0]), round(y * height) + int(at[1]))
        cv2.circle(depth, centre, HOLE_PX, 255, -1, cv2.LINE_AA)
    left, top = round(0.42 * width) + int(at[0]), round(0.18 * height) + int(at[1])
    cv2.rectangle(depth, (left, top), (left + round(0.16 * width), top + round(0.2 * height)), 255, -1)
    shade = cv2.GaussianBlur(depth, (0, 0), 2.0).astype(np.float32) / 255
    edge = cv2.Sobel(shade, cv2.CV_32F, 1, 1, ksize=3) + cv2.Sobel(shade, cv2.CV_32F, 0, 1, ksize=3)
    levels = levels * (1 - shade) + 25 * shade + 60 * edge
    printed = (round(0.12 * width) + int(at[0]), round(0.35 * height) + int(at[1]))
    ink = cv2.putText(
        np.zeros(size_hw, np.uint8), "PL-2044", printed, cv2.FONT_HERSHEY_SIMPLEX, 3.0, 60, 8, cv2.LINE_AA
    )
    levels -= ink
    if scratch is not None:
        levels += _scratch(size_hw, scratch)
    ys, xs = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    levels *= np.float32(rng.uniform(0.95, 1.05)) * (1 + np.float32(rng.uniform(0.05, 0.1)) * xs - 0.06 * ys**2)
    levels += 2.5 * rng.standard_normal(levels.shape, np.float32)
    grey = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def _scratch(size_hw: tuple[int, int], scratch: tuple[int, int, int, float]) -> np.ndarray:
    x, y, length, angle = scratch
    along = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    layer = np.zeros(size_hw, np.float32)
    for offset, level in ((-1, 38.0), (0, 12.0), (1, -34.0)):
        across = np.array([-np.sin(angle), np.cos(angle)]) * offset
        ends = np.rint(np.array([(x, y) + across - along, (x, y) + across + along])).astype(int)
        cv2.line(layer, ends[0].tolist(), ends[1].tolist(), level, 1)
    return layer
