"""How many pixels an image file says it has, read from its header before a decoder takes memory for them. Pure.

Only the formats named here ever reach a decoder: OpenCV has others (AVIF, GIF, Radiance, Sun raster, PFM, PAM) and
chooses by content, whatever a file is called. The size is read where the decoder takes it from (JPEG 2000: the
codestream, not the box before it that says so too), which is why no library of image sizes serves here; where a file
says it twice, the larger counts. The fuzzer compares with what is decoded.
"""

import re
import struct
from collections.abc import Callable
from typing import Final

from inspectad.errors import UnreadableImageError
from inspectad.image_limits import check_pixels
from inspectad.jpeg import jpeg_frame
from inspectad.tiff import is_tiff, tiff_sizes

Size = tuple[int, int]
"""Width and height."""

_MOST_SCANS: Final = 200  # of a progressive JPEG: programs write about 10, and each goes over all pixels once more
_MOST_JP2_TILES: Final = 2**14  # the decoder takes some KB for each before it reads the first
_MOST_JP2_CHANNELS: Final = 4  # OpenCV decodes no more, but only after memory was taken for all
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JP2: Final = b"\0\0\0\x0cjP  \r\n\x87\n"
_J2K: Final = b"\xff\x4f\xff\x51"
_PNM_GAP: Final = rb"(?:\s|#[^\r\n]*+[\r\n])"
_PNM: Final = re.compile(rb"P[1-6]" + _PNM_GAP + rb"*+(\d{1,10}+)" + _PNM_GAP + rb"++(\d{1,10}+)(?!\d)")


def check_header(data: bytes) -> Size:
    """Width and height of an image that may be decoded, as stored (EXIF may turn it).

    Raises: UnreadableImageError: none of the formats, a header that does not tell its size, or too many pixels.
    """
    for begins, sizes in _FORMATS:
        if begins(data):
            try:
                found = sizes(data)
            except (struct.error, IndexError):
                found = []  # it ends before it says so
            break
    else:
        raise UnreadableImageError(
            "not an image, or of a format that is not read (PNG, JPEG, BMP, TIFF, WebP, PNM and JPEG 2000 are); "
            "copy or export it again"
        )
    if not found or min(map(min, found)) < 1:
        raise UnreadableImageError("an image with a damaged or truncated header; copy or export it again")
    for size in found:
        check_pixels(*size)
    return found[0]


def _png(data: bytes) -> list[Size]:
    return [struct.unpack_from(">II", data, 16)] if data[12:16] == b"IHDR" else []


def _jpeg(data: bytes) -> list[Size]:
    frame = jpeg_frame(data)
    if frame is None:
        return []
    kind, height, width = frame
    if kind in _PROGRESSIVE and data.count(b"\xff\xda") > _MOST_SCANS:
        raise UnreadableImageError(f"a JPEG file in more than {_MOST_SCANS} scans; export it again")
    return [(width, height)]


def _bmp(data: bytes) -> list[Size]:
    (length,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if length == 12 else "<ii", data, 18)
    return [(int(width), abs(int(height)))]  # a negative height: the first row is the top one


def _webp(data: bytes) -> list[Size]:
    kind = data[12:16]
    if kind == b"VP8X":
        return [(1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))]
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return [(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return [(width & 0x3FFF, height & 0x3FFF)]
    return []


def _pnm(data: bytes) -> list[Size]:
    found = _PNM.match(data)
    return [(int(found[1]), int(found[2]))] if found else []


def _jp2(data: bytes) -> list[Size]:
    """Boxes up to the one that holds the codestream."""
    at = 0
    for _ in range(1000):
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        if kind == b"jp2c":
            return _codestream(data, start)
        if not start - at <= length <= len(data):
            return []
        at += int(length)
    return []


def _codestream(data: bytes, start: int = 0) -> list[Size]:
    """The SIZ segment (ISO/IEC 15444-1, A.5.1): corners of the image and of its tiles on the reference grid."""
    if data[start : start + 4] != _J2K:
        return []
    right, bottom, left, top, tile_w, tile_h, tile_x, tile_y = struct.unpack_from(">8I", data, start + 8)
    (channels,) = struct.unpack_from(">H", data, start + 40)
    if not tile_w or not tile_h:
        return []
    tiles = -(-(right - tile_x) // tile_w) * -(-(bottom - tile_y) // tile_h)
    if tiles > _MOST_JP2_TILES or channels > _MOST_JP2_CHANNELS:
        raise UnreadableImageError(
            f"a JPEG 2000 file of {tiles} tiles and {channels} channels "
            f"(at most {_MOST_JP2_TILES} and {_MOST_JP2_CHANNELS}); export it again"
        )
    return [(right - left, bottom - top)]


def _starts(magic: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(magic)


_FORMATS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[bytes], list[Size]]], ...]] = (
    (_starts(b"\x89PNG\r\n\x1a\n"), _png),
    (_starts(b"\xff\xd8\xff"), _jpeg),
    (_starts(b"BM"), _bmp),
    (is_tiff, tiff_sizes),
    (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _webp),
    (lambda data: data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6"), _pnm),
    (_starts(_JP2), _jp2),
    (_starts(_J2K), _codestream),
)
