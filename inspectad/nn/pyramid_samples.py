"""A picture of what a pyramid learnt: its training images, and what its generators make of noise at each scale."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from inspectad.nn.patch_gan import resample, resampling
from inspectad.nn.pyramid import PyramidPlan, Scale, generate
from inspectad.nn.seeded import source
from inspectad.records import ByteArray

COLUMNS: Final = 8
_GAP_PX: Final = 2
_DRAWN: Final = 9  # sets these random numbers apart from those of training


def draw_samples(images: Tensor, scales: Sequence[Scale], plan: PyramidPlan) -> ByteArray:
    """Rows, all enlarged to the input: training images; and of each scale, coarsest first, its reconstructions of
    them, and new images like them.

    Args: images uint8 (N, S, S, 3), the training's, on its device.
    Returns: uint8 (h, w, 3), `COLUMNS` wide.
    """
    side = images.shape[1]
    shown = torch.arange(COLUMNS, device=images.device) % len(images)
    rows = [images[shown].permute(0, 3, 1, 2)]
    with torch.no_grad():
        for number in range(1, len(scales) + 1):
            made = scales[:number]
            at = made[-1].side
            for random in (None, source(plan.seed, number, _DRAWN)):
                found = generate(made, at, shown, random)
                enlarged = resample(found, resampling(at, side).to(images.device))
                rows.append(((enlarged + 1) * 127.5).round().to(torch.uint8))
    return grid(rows)


def grid(rows: Sequence[Tensor]) -> ByteArray:
    """Args: rows of images (B, 3, S, S) uint8. Returns: (h, w, 3), white between them."""
    count, _, height, width = rows[0].shape
    step_y, step_x = height + _GAP_PX, width + _GAP_PX
    picture = torch.full((len(rows) * step_y - _GAP_PX, count * step_x - _GAP_PX, 3), 255, dtype=torch.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row.cpu()):
            picture[y * step_y : y * step_y + height, x * step_x : x * step_x + width] = image.permute(1, 2, 0)
    return picture.numpy()
