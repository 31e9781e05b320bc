"""The images of ``benchmark soak``: a small set under as many names as are asked for, one in ten damaged or odd."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from inspectad.atomic import output_error, write_atomically
from inspectad.benchmark.speed_images import from_all_over, link_or_copy
from inspectad.demo_part import render_part
from inspectad.errors import InspectadError
from inspectad.image_files import find_images
from inspectad.png import encode_png

PER_FOLDER: Final = 1_000
_EVERY: Final = 10  # the last of so many is one of the odd ones
_MOST_OWN: Final = 64  # different images of the user's that are used
_PART_HW: Final = (200, 240)
_LARGE_HW: Final = (1_800, 2_400)
_PARTS: Final = (None, "scratch", None, "stain", None, "dent", None, "missing_hole")
GOOD: Final = 6  # rendered parts that a model is trained on, where there is none


@dataclass(frozen=True, slots=True)
class Mix:
    """Which file is behind which number.

    Attributes:
        usual, odd: nine in ten and one in ten, each in turns; ``odd`` may be empty.
        images: how many numbers there are.
    """

    usual: tuple[Path, ...]
    odd: tuple[Path, ...]
    images: int

    def source(self, number: int) -> Path:
        """The file behind a number."""
        turn, place = divmod(number, _EVERY)
        if self.odd and place == _EVERY - 1:
            return self.odd[turn % len(self.odd)]
        return self.usual[number % len(self.usual)]

    def name(self, number: int) -> str:
        """The image's name in the scan, in folders of a thousand."""
        return f"{number // PER_FOLDER:05}/{number:08}{self.source(number).suffix}"

    def number(self, name: str) -> int | None:
        """The number that a name stands for; None where it is none of ours."""
        digits = name.rpartition("/")[2].partition(".")[0]
        number = int(digits) if digits.isdecimal() else self.images
        return number if number < self.images and self.name(number) == name else None

    def put(self, number: int, folder: Path, *, renamed: bool = False) -> None:
        """Make the image: a link where the system lets us, else a copy.

        Args: renamed: under another name first, as a camera's program should do it in a folder that is watched.
        Raises: OutputError.
        """
        path = folder / self.name(number)
        made = path.with_name(path.name + ".part") if renamed else path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(self.source(number), made)
            if renamed:
                made.rename(path)
        except OSError as error:
            raise output_error(path, error) from error


def find_usual(folder: Path, *exclude: Path) -> tuple[Path, ...]:
    """Some of a folder's images, from all over it. Raises: InspectadError: none there."""
    found = find_images(folder, *exclude)
    if not found:
        raise InspectadError(f"{folder}: no images in there (looked for .png, .jpg, .bmp, .tif, .webp and the like)")
    return tuple(file.path.resolve() for file in from_all_over(found)[:_MOST_OWN])


def render_usual(folder: Path) -> tuple[Path, ...]:
    """Rendered parts, half of them defective."""
    return tuple(
        _write(folder / f"part_{i}.png", encode_png(render_part(300 + i, defect, _PART_HW).image))
        for i, defect in enumerate(_PARTS)
    )


def render_good(folder: Path) -> Path:
    """Rendered good parts to train on."""
    for i in range(GOOD):
        write_atomically(folder / f"good_{i}.png", encode_png(render_part(i, None, _PART_HW).image))
    return folder


def render_odd(folder: Path) -> tuple[Path, ...]:
    """What a line should not send, and does: damaged files, other depths and shapes, one large image."""
    part = render_part(400, "scratch", _PART_HW).image
    png = encode_png(part)
    grey = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
    jpeg = _encode(".jpg", part)
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    large = cv2.resize(part, _LARGE_HW[::-1], interpolation=cv2.INTER_CUBIC)
    files = {
        "truncated.png": png[: len(png) // 2],
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "text.jpg": b"no image at all\n" * 20,
        "flipped.png": bytes(flipped),
        "deep.png": _encode(".png", grey.astype(np.uint16) * 16),
        "alpha.png": _encode(".png", np.dstack([part, grey])),
        "grey.tif": _encode(".tif", grey),
        "long.webp": _encode(".webp", part[90:110]),
        "large.jpg": _encode(".jpg", large),
    }
    return tuple(_write(folder / name, data) for name, data in files.items())


def _encode(suffix: str, image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(suffix, image)[1].tobytes())


def _write(path: Path, data: bytes) -> Path:
    write_atomically(path, data)
    return path.resolve()
