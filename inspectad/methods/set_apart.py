"""Good images that teach a method nothing, so that what is usual can be measured of them."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from inspectad.records import ByteArray
from inspectad.training_data import spread

_ONE_IN: Final = 5
_MOST: Final = 64
_LEAST_GOOD: Final = 5  # with fewer none is: each is needed to learn from


def set_apart(good: Sequence[int], at_least: int = 1) -> list[int]:
    """Which of these good images teach nothing, evenly spread; none of a few."""
    count = max(at_least, min(len(good) // _ONE_IN, _MOST)) if len(good) >= _LEAST_GOOD else 0
    return [good[i] for i in spread(len(good), count)]


def shifted(images: Sequence[ByteArray], seed: int) -> list[ByteArray]:
    """A copy of each, moved by 1 to 7 pixels each way, and two of a single one: they stand for good images that taught
    nothing where there are none."""
    rng = np.random.default_rng((seed, len(images)))
    copied = list(images) if len(images) > 1 else [*images, *images]
    return [np.roll(image, rng.integers(1, 8, 2), axis=(0, 1)) for image in copied]
