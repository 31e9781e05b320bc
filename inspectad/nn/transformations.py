"""The transformations that a discriminator learns to tell apart, by exact operations on whole pixels.

Source: Sheynin, Benaim & Wolf, "A Hierarchical Transformation-Discriminating Generative Model for Few Shot Anomaly
Detection" (ICCV 2021), supplementary: 54 of them, 42 without the grey ones, or the 4 quarter turns alone. The released
code shuffles their order; which number a transformation has means nothing, so here the order is the one below.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product
from typing import Final

import torch
from torch import Tensor

SHIFT: Final = 0.15
"""Of the side, rounded to whole pixels: how far an image is moved."""
_LUMA: Final = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Transformation:
    """Mirrored first, then moved, then turned.

    Attributes:
        flip: 1 where left and right are exchanged.
        shift_x: -1, 0 or 1 times `SHIFT` to the right; what comes in is reflected.
        shift_y: the same, downwards.
        turns: quarter turns counter-clockwise, 0 to 3.
        grey: 1 where colours are taken away.
    """

    flip: int = 0
    shift_x: int = 0
    shift_y: int = 0
    turns: int = 0
    grey: int = 0

    @property
    def keeps_pixels(self) -> bool:
        """Whether every pixel is still there, so that it can be undone."""
        return self.shift_x == 0 == self.shift_y


def _geometric() -> tuple[Transformation, ...]:
    both = (0, 1)
    turned = [Transformation(f, x, y, r) for f, x, y, r in product(both, both, both, range(4))]
    up = [Transformation(f, x, -1) for f, x in product(both, (-1, 0, 1))]
    left = [Transformation(f, -1, y) for f, y in product(both, both)]
    return (*turned, *up, *left)


def _grey() -> tuple[Transformation, ...]:
    turned = [Transformation(f, turns=r, grey=1) for f, r in product((0, 1), range(4))]
    moved = [Transformation(shift_x=x, shift_y=y, grey=1) for x, y in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    return (*turned, *moved)


ROTATIONS: Final = tuple(Transformation(turns=r) for r in range(4))
GEOMETRIC: Final = _geometric()
ALL: Final = (*GEOMETRIC, *_grey())


def shift_px(side: int) -> int:
    """How many pixels a move is, of an image of this side."""
    return round(SHIFT * side)


def apply(images: Tensor, transformation: Transformation) -> Tensor:
    """Args: images (B, 3, S, S), square. Returns: the same shape and type, every pixel one of the image's own."""
    t = transformation
    if t.flip:
        images = images.flip(-1)
    distance = shift_px(images.shape[-1])
    images = _moved(_moved(images, -1, t.shift_x * distance), -2, t.shift_y * distance)
    if t.turns:
        images = torch.rot90(images, t.turns, (-2, -1))
    return _greyed(images) if t.grey else images


def apply_all(images: Tensor, transformations: Iterable[Transformation]) -> Tensor:
    """All of them on the batch axis: (B, 3, S, S) to (M * B, 3, S, S), the images of the first transformation first."""
    return torch.cat([apply(images, t) for t in transformations])


def undo(maps: Tensor, transformation: Transformation) -> Tensor:
    """Bring maps of transformed images (B, C, h, h) back to where the pixels came from; colours do not come back.

    Raises: ValueError: the transformation moves the image, so that a part of it is gone.
    """
    t = transformation
    if not t.keeps_pixels:
        raise ValueError(f"{t} cannot be undone")
    if t.turns:
        maps = torch.rot90(maps, -t.turns, (-2, -1))
    return maps.flip(-1) if t.flip else maps


def _moved(images: Tensor, axis: int, distance: int) -> Tensor:
    """Along an axis, what comes in reflected without the edge itself.

    Joined from slices: the gradient of torch's reflection padding depends on the order of additions on a GPU.
    """
    if distance == 0:
        return images
    size, step = images.shape[axis], abs(distance)
    if distance > 0:
        return torch.cat([images.narrow(axis, 1, step).flip(axis), images.narrow(axis, 0, size - step)], axis)
    return torch.cat(
        [images.narrow(axis, step, size - step), images.narrow(axis, size - 1 - step, step).flip(axis)], axis
    )


def _greyed(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return torch.stack([luma, luma, luma], dim=1)


def pixel_table(transformations: Sequence[Transformation], side: int) -> Tensor:
    """Where each pixel of transformed images comes from, for `look_up`: (M, side * side) int64.

    Numbers count the pixels of the image row by row, then those of the image without its colours.
    """
    numbers = _numbers(side)
    return torch.stack([apply(numbers, replace(t, grey=0)).flatten() + t.grey * side**2 for t in transformations])


def look_up(images: Tensor, table: Tensor, *, has_grey: bool) -> Tensor:
    """What `apply_all` gives, by a single operation: an exported graph of hundreds takes minutes to make.

    Args: table: of `pixel_table`; has_grey: whether one of its transformations takes colours away.
    """
    side = images.shape[-1]
    pixels = torch.cat([images, _greyed(images)], dim=2) if has_grey else images
    found = pixels.flatten(2).index_select(2, table.flatten())
    stacked = found.view(*found.shape[:2], len(table), -1).permute(2, 0, 1, 3)
    return stacked.reshape(-1, images.shape[1], side, side)


def undo_table(transformations: Sequence[Transformation], side: int) -> Tensor:
    """Where each pixel of maps that are undone comes from, for `torch.gather`: (M, side * side) int64; see `undo`."""
    return torch.stack([undo(_numbers(side), t).flatten() for t in transformations])


def _numbers(side: int) -> Tensor:
    return torch.arange(side**2).view(1, 1, side, side)


def to_tensor(transformations: Iterable[Transformation]) -> Tensor:
    """(M, 5) int64, in their order: what travels with the weights."""
    return torch.tensor([astuple(t) for t in transformations], dtype=torch.int64)


def from_tensor(rows: Tensor) -> tuple[Transformation, ...]:
    """The inverse of `to_tensor`. Raises: ValueError: a row that is none of `ALL`."""
    found = tuple(Transformation(*row) for row in rows.tolist())
    unknown = [t for t in found if t not in ALL]
    if unknown or not found:
        raise ValueError(f"no transformations of this method: {unknown}")
    return found
