"""How large an image may be. Kept in the environment, so that every thread and every worker process has the same."""

import os
from typing import Final

from inspectad.errors import UnreadableImageError, UsageError

VARIABLE: Final = "INSPECTAD_MAX_MEGAPIXELS"
DEFAULT_MEGAPIXELS: Final = 400.0
MOST_MEGAPIXELS: Final = 2**30 / 1e6
"""OpenCV decodes no more."""
MOST_FILE_BYTES: Final = 2**31 - 1
"""Of an encoded image: OpenCV takes no longer buffer."""
_BYTES_A_PIXEL: Final = 8  # 16 bits of red, green, blue and transparency, uncompressed
_OTHER_BYTES: Final = 64 * 2**20  # what else may be in a file: metadata, thumbnails, colour profiles


def set_max_megapixels(megapixels: float) -> None:
    """Refuse larger images from now on, in this process and in those that it starts.

    Raises: UsageError when OpenCV could not decode that many, or for a number below 0.01.
    """
    _checked(megapixels, "--max-megapixels")
    os.environ[VARIABLE] = repr(float(megapixels))


def max_pixels() -> int:
    """How many pixels an image may have. Raises: UsageError when the environment variable holds no such number."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return round(DEFAULT_MEGAPIXELS * 1e6)
    try:
        return round(_checked(float(text), VARIABLE) * 1e6)
    except ValueError as error:
        raise UsageError(f"{VARIABLE}={text}: no number; set it to megapixels, as 800, or remove it") from error


def _checked(megapixels: float, source: str) -> float:
    if not 0.01 <= megapixels <= MOST_MEGAPIXELS:  # NaN too
        raise UsageError(
            f"{source} {megapixels:g}: give 0.01 to {MOST_MEGAPIXELS:.0f}, more than which are not decoded"
        )
    return megapixels


def check_pixels(width: int, height: int) -> None:
    """Refuse an image of more pixels than allowed. Raises: UnreadableImageError, which says what raises the limit."""
    if width * height > (limit := max_pixels()):
        raise UnreadableImageError(
            f"{width} x {height} pixels, more than the limit of {limit / 1e6:g} megapixels; "
            "if the image is what it should be, raise it with --max-megapixels"
        )


def check_file_bytes(size: int) -> None:
    """Refuse a file longer than an image of the allowed pixels can need, before it is read.

    Raises: UnreadableImageError.
    """
    limit = min(_BYTES_A_PIXEL * (pixels := max_pixels()) + _OTHER_BYTES, MOST_FILE_BYTES)
    if size > limit:
        advice = "" if limit == MOST_FILE_BYTES else "; if it is what it should be, raise it with --max-megapixels"
        raise UnreadableImageError(
            f"{size} bytes, more than the {limit} that an image file of {pixels / 1e6:g} megapixels may have{advice}"
        )
