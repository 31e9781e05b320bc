"""How much of an image its part fills, where the part lies on a plain background. Pure numpy, a heuristic."""

from typing import Final

import numpy as np

from inspectad.images import resize
from inspectad.records import ByteArray

_SIDE: Final = 64  # looked at in a thumbnail of so many pixels either way
_PLAIN: Final = 8.0  # largest usual difference (0..255) from the border's colour of a background that is plain
_APART: Final = 20.0  # least difference of the part


def part_share(image: ByteArray) -> float | None:
    """Share of the image that differs from the colour along its border.

    Args: image (H, W, 3) uint8.
    Returns: 0..1; None where the border is not plain (a part or texture that fills the frame, or noise).
    """
    small = resize(image, (_SIDE, _SIDE)).astype(np.float64)
    border = np.concatenate([edge.reshape(-1, 3) for edge in (small[:2], small[-2:], small[:, :2], small[:, -2:])])
    colour = np.median(border, axis=0)
    noise = np.abs(border - colour).max(axis=1)
    limit = max(_APART, 4 * float(np.median(noise)))
    if float(np.quantile(noise, 0.95)) > limit or float(np.median(noise)) > _PLAIN:
        return None
    return float((np.abs(small - colour).max(axis=2) > limit).mean())
