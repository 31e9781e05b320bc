"""Which images teach: the same ones for every method, on every machine, in every version. Pure.

The images of a folder are put in the order of the SHA-256 of ``<seed>/<path>``, the path relative to the folder
(``train/good`` or ``good``; ``test`` or ``defects``) with forward slashes, in UTF-8. The first ones teach. So the draw
of 4 is part of the draw of 16, a seed gives another order, an image that is added or removed leaves the others where
they were, and whoever has the images can draw again with ten lines of any language.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from inspectad.benchmark.datasets import Dataset
from inspectad.errors import TrainingError
from inspectad.image_files import ImageFile


@dataclass(frozen=True, slots=True)
class Draw:
    """Which images teach and which are the test; no image is in both. Each in the order of names."""

    train_good: tuple[ImageFile, ...]
    train_defects: tuple[ImageFile, ...]
    test_good: tuple[ImageFile, ...]
    test_defects: tuple[ImageFile, ...]


def ranked(files: Sequence[ImageFile], seed: int) -> list[ImageFile]:
    """The files in the order in which they are drawn."""
    return sorted(files, key=lambda f: hashlib.sha256(f"{seed}/{f.name}".encode("utf-8", "surrogateescape")).digest())


def draw(dataset: Dataset, shots: int | None, defect_shots: int, seed: int) -> Draw:
    """Draw good images (None: all of them) and defects to train on; drawn defects leave the test.

    Raises: TrainingError: there are not so many, or none is left to test with.
    """
    good, defects = ranked(dataset.train_good, seed), ranked(dataset.defects, seed)
    count = len(good) if shots is None else shots
    for wanted, there, kind in ((count, good, "good training images"), (defect_shots, defects, "defects")):
        if wanted > len(there):
            raise TrainingError(f"{dataset.name} has {len(there)} {kind}, not the {wanted} that were asked for")
    test_good = good[count:] if dataset.test_good is None else dataset.test_good
    for left, kind in ((test_good, "good image"), (defects[defect_shots:], "defect")):
        if not left:
            raise TrainingError(f"{dataset.name}: with all of them drawn, no {kind} is left to test with; draw fewer")
    return Draw(*map(_by_name, (good[:count], defects[:defect_shots], test_good, defects[defect_shots:])))


def _by_name(files: Sequence[ImageFile]) -> tuple[ImageFile, ...]:
    return tuple(sorted(files, key=lambda f: f.name))
