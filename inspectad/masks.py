"""Truth masks of defects: where they are, and that they fit their images."""

from pathlib import Path

import numpy as np

from inspectad.errors import UnreadableImageError, UsageError
from inspectad.image_files import IMAGE_SUFFIXES
from inspectad.images import read_image
from inspectad.records import ByteArray


def mask_path(folder: Path, name: str) -> Path | None:
    """Where the mask of the defect of that name is, if it has one."""
    stem = folder / Path(name).with_suffix("")
    names = [f"{stem}{ending}{suffix}" for ending in ("_mask", "") for suffix in sorted(IMAGE_SUFFIXES)]
    return next((Path(n) for n in names if Path(n).is_file()), None)


def read_mask(path: Path, size_hw: tuple[int, int]) -> ByteArray:
    """A mask, nonzero where defective. Raises: UsageError when it does not fit the image."""
    try:
        mask = read_image(path).pixels.max(axis=2)
    except UnreadableImageError as error:
        raise UsageError(f"{path}: this mask {error}") from error
    if mask.shape != size_hw:
        turned = mask.shape == size_hw[::-1]
        raise UsageError(
            f"{path}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, its image "
            f"{size_hw[1]} x {size_hw[0]}; they must be equal"
            + (
                " (does the image's EXIF orientation turn it? the mask must lie as the image is shown)"
                if turned
                else ""
            )
        )
    if len(np.unique(mask)) > 2:
        raise UsageError(
            f"{path}: has more than two values, so it is no mask; masks are 0 where good and 255 where not"
        )
    return np.asarray(mask > 0, np.uint8)
