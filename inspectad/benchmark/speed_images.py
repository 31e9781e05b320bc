"""The images of ``benchmark speed``: a sample of the user's, or rendered ones, in memory and as files of many names."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspectad.atomic import output_error, write_atomically
from inspectad.demo_part import render_part
from inspectad.errors import InspectadError, UnreadableImageError
from inspectad.image_files import ImageFile, find_images
from inspectad.images import decode_image, read_file, to_8_bit
from inspectad.png import encode_png
from inspectad.progress import Step
from inspectad.records import ByteArray

HELD_BYTES: Final = 256 * 2**20  # of one sample, with all that the stages need of it
_HELD_COPIES: Final = 3  # decoded pixels, the overlay, and at worst as much again for files and PNG
_MOST_IMAGES: Final = 256
LINE: Final = (None, "scratch", None, "stain", None, "dent", None, "missing_hole", None, "scratch", None, "stain")
GOOD: Final = 4  # rendered images that a model is trained on, where there is none


@dataclass(frozen=True, slots=True)
class Sample:
    """Images that all stages and the pipeline are run over, again and again.

    Attributes:
        files: where they are.
        data: the files' bytes.
        sources: (H, W, 3) RGB uint8, decoded.
        found: how many images the folder has.
        unreadable: of those that were tried.
    """

    files: tuple[ImageFile, ...]
    data: tuple[bytes, ...]
    sources: tuple[ByteArray, ...]
    found: int
    unreadable: int

    def __len__(self) -> int:
        return len(self.files)

    @property
    def megapixels(self) -> float:
        """Mean of an image."""
        return sum(s.size for s in self.sources) / 3 / len(self.sources) / 1e6

    @property
    def file_mb(self) -> float:
        """Mean of a file."""
        return sum(map(len, self.data)) / len(self.data) / 1e6


def take_sample(folder: Path, full_scale: int, *exclude: Path, held_bytes: int = HELD_BYTES) -> Sample:
    """As many of a folder's images, from all over it, as fit into memory together with what the stages make of them.

    Args: full_scale: white level of the model. exclude: folders that are left out.

    Raises:
        UsageError: no such folder.
        InspectadError: no image in it, or none that this model can judge.
    """
    found = find_images(folder, *exclude)
    if not found:
        raise InspectadError(f"{folder}: no images in there (looked for .png, .jpg, .bmp, .tif, .webp and the like)")
    files: list[ImageFile] = []
    data: list[bytes] = []
    sources: list[ByteArray] = []
    held, unreadable, reason = 0, 0, ""
    for file in from_all_over(found):
        try:
            content = read_file(file.path)
            source = to_8_bit(decode_image(content), full_scale)
        except UnreadableImageError as error:
            unreadable, reason = unreadable + 1, str(error)
            continue
        held += _HELD_COPIES * source.nbytes
        if files and (held > held_bytes or len(files) == _MOST_IMAGES):
            break
        files.append(file)
        data.append(content)
        sources.append(source)
    if not files:
        raise InspectadError(f"{folder}: none of its {len(found)} images can be judged ({reason})")
    return Sample(tuple(files), tuple(data), tuple(sources), len(found), unreadable)


def from_all_over(files: Sequence[ImageFile]) -> list[ImageFile]:
    """The same files in an order whose first ones, however many, lie all over the list: by reversed binary digits."""
    digits = max(len(files) - 1, 1).bit_length()
    numbers = (int(f"{i:0{digits}b}"[::-1], 2) for i in range(2**digits))
    return [files[i] for i in numbers if i < len(files)]


def render_line(folder: Path, step: Step) -> Path:
    """Twelve rendered parts, half of them defective."""
    for i, defect in enumerate(LINE):
        step("rendering parts", i, len(LINE))
        write_atomically(folder / f"part_{i:02}.png", encode_png(render_part(200 + i, defect).image))
    return folder


def render_good(folder: Path, step: Step) -> Path:
    """Rendered good parts to train on."""
    for i in range(GOOD):
        step("rendering good parts", i, GOOD)
        write_atomically(folder / f"good_{i:02}.png", encode_png(render_part(i).image))
    return folder


class ManyNames:
    """The sample's files under as many names as a run needs, since each image of a scan has a name of its own."""

    def __init__(self, folder: Path, files: Sequence[ImageFile]) -> None:
        self._folder = folder
        self._files = files
        self._paths: list[str] = []

    def first(self, count: int) -> tuple[str, ...]:
        """So many names; the files take turns. Raises: OutputError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for i in range(len(self._paths), count):
                file = self._files[i % len(self._files)].path.resolve()
                path = self._folder / f"{i:07}{file.suffix}"
                link_or_copy(file, path)
                self._paths.append(str(path))
        except OSError as error:
            raise output_error(self._folder, error) from error
        return tuple(self._paths[:count])


def link_or_copy(file: Path, path: Path) -> None:
    """A link where the system lets us make one, else a copy."""
    for link in (os.symlink, os.link, shutil.copyfile):
        try:
            link(file, path)
            return
        except FileExistsError:  # a copy would go through a link that is there, into somebody's image
            raise
        except OSError:  # Windows lets only administrators link, and not to other drives
            if link is shutil.copyfile:
                raise
