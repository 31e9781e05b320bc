"""Defects made of good images, for a training that has no real one: a patch of one pasted where it does not belong.

Source: Li, Sohn, Yoon & Pfister, "CutPaste" (CVPR 2021); from another image, as in CutMix (Yun et al., ICCV 2019).
"""

import math

import numpy as np

from inspectad.records import ByteArray

_AREA = (0.02, 0.15)  # of the image; below it, scratches would vanish at the network's stride
_ASPECT = 3.0  # at most so many times as long as wide


def paste_patch(image: ByteArray, source: ByteArray, random: np.random.Generator) -> ByteArray:
    """A copy of an image with a rectangle of another good one in it, from another place.

    Args: image and source uint8 (H, W, 3) of one shape; they may be the same image.
    Returns: the same shape.
    """
    height, width = image.shape[:2]
    area = random.uniform(*_AREA) * height * width
    aspect = math.exp(random.uniform(-math.log(_ASPECT), math.log(_ASPECT)))
    h = min(max(round(math.sqrt(area / aspect)), 1), height)
    w = min(max(round(math.sqrt(area * aspect)), 1), width)
    (y, from_y), (x, from_x) = random.integers(0, height - h + 1, 2), random.integers(0, width - w + 1, 2)
    pasted = image.copy()
    pasted[y : y + h, x : x + w] = source[from_y : from_y + h, from_x : from_x + w]
    return pasted
