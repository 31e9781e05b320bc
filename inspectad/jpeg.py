"""JPEG files decoded at a half, a quarter or an eighth of their size: much faster, and part of the resize rule. Pure.

The decoder leaves out the high frequencies of each block before it transforms it back; what is left is then averaged
down to the input size by a factor of two at least, as everything is. The rule is the same in training and scanning, so
a verdict does not depend on it being applied here and not there.
"""

import struct
from typing import Final

from inspectad.end_mark import jpeg_segments

_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, each kind of coding
_LEAST: Final = 2  # how much larger than the input the decoded image stays, on both axes


def jpeg_reduction(data: bytes, input_size_hw: tuple[int, int]) -> int:
    """By how much a file is to be decoded smaller: 8, 4, 2, or 1 for everything that is no large JPEG.

    Args:
        data: of the whole file.
        input_size_hw: height and width of the network's input.
    """
    size = jpeg_size(data)
    if size is None:
        return 1
    height, width = size
    longer, shorter = max(input_size_hw), min(input_size_hw)  # EXIF may turn the image
    fits = (r for r in (8, 4, 2) if max(size) >= _LEAST * r * longer and min(size) >= _LEAST * r * shorter)
    # Rounded up, almost equal sides become equal, and nothing tells whether EXIF turned the image.
    return next((r for r in fits if height == width or -(-height // r) != -(-width // r)), 1)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width as stored; None when it is no JPEG, or one whose frame header is not found."""
    frame = jpeg_frame(data)
    return None if frame is None else frame[1:]


def jpeg_frame(data: bytes) -> tuple[int, int, int] | None:
    """The frame header's kind (the marker's second byte), height and width; None as for `jpeg_size`."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    for kind, start in jpeg_segments(data):
        if kind in _FRAMES:
            if start + 7 > len(data):
                return None
            height, width = struct.unpack_from(">HH", data, start + 3)
            return kind, int(height), int(width)
    return None
