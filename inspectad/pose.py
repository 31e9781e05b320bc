"""How parts lie before the camera, and the copies of a good image that stand for other ways to lie. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from inspectad.errors import UsageError
from inspectad.records import ByteArray

MIRRORS: Final[dict[str, Callable[[ByteArray], ByteArray]]] = {
    "left-right": lambda image: image[:, ::-1],
    "up-down": lambda image: image[::-1],
    "half turn": lambda image: image[::-1, ::-1],
}
"""Exact copies: no pixel is interpolated, and they fit every aspect ratio. Args and returns: (H, W, 3)."""

_TURNS: Final = (24, 12, 8, 4)
_MOST_COPIES: Final = 128  # of all images together, while 4 of each are not more: at 480 px they take 8 s on two cores


@dataclass(frozen=True, slots=True)
class Pose:
    """In which ways good parts lie.

    Attributes:
        mirrors: keys of `MIRRORS` by which a good part still looks like a good part.
        turns: how many angles, evenly spread over the circle, stand for any angle; 1 when parts do not turn.
    """

    mirrors: tuple[str, ...] = ()
    turns: int = 1

    def __str__(self) -> str:
        if self.turns > 1:
            return f"any angle, each good image turned to {self.turns} of them"
        return f"as photographed and {', '.join(self.mirrors)}" if self.mirrors else "as photographed"


FIXED: Final = Pose()
POSES: Final = ("auto", "fixed", "mirrored", "any")
"""What ``train --pose`` takes; ``auto`` asks the good images."""


def any_angle(images: int) -> Pose:
    """Parts at any angle. Args: images: number of good ones; the fewer they are, the more angles each stands for."""
    return Pose(turns=next((n for n in _TURNS if n * images <= _MOST_COPIES), _TURNS[-1]))


def pose_named(name: str, images: int) -> Pose:
    """The pose that a user asked for, by a name of `POSES` other than ``auto``. Raises: UsageError."""
    poses = {"fixed": FIXED, "mirrored": Pose(tuple(MIRRORS)), "any": any_angle(images)}
    if name not in poses:
        raise UsageError(f"no pose named {name!r}; there are: {', '.join(POSES)}")
    return poses[name]


def copies(image: ByteArray, pose: Pose) -> Sequence[ByteArray]:
    """The image as it is, then its copies. Args: (H, W, 3) uint8. Returns: images of the same shape."""
    turned = [turn(image, 360 * i / pose.turns) for i in range(1, pose.turns)]
    return [image, *(np.ascontiguousarray(MIRRORS[name](image)) for name in pose.mirrors), *turned]


def turn(image: ByteArray, degrees: float) -> ByteArray:
    """Turned about its centre within its own frame; what comes in from outside continues the edge by reflection.

    Args: image (H, W, 3) uint8; degrees: counter-clockwise. Returns: the same shape.
    """
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, np.uint8)
