"""Has a file arrived whole? Formats that say where they end, asked without decoding. Pure."""

import re
import struct
from collections.abc import Iterator
from typing import Final

# In entropy-coded data 0xFF is followed by a zero byte or a restart marker; anything else begins a segment.
_JPEG_MARKER: Final = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_JPEG_END: Final = 0xD9
_JPEG_WITHOUT_LENGTH: Final = (0x01, 0xD8, _JPEG_END)


def is_whole(data: bytes) -> bool | None:
    """Whether all bytes of an image file are there, as far as its format says where it ends.

    Bytes behind the end do not matter: some cameras pad their files. The first bytes tell the format.

    Returns: None for formats without such a mark (TIFF, PNM, JPEG 2000) and for what is none of the formats.
    """
    start = data[:8].rstrip(b"\0")  # zeros: a copying program reserved the space first
    for magic, reaches_its_end in _FORMATS.items():
        if data.startswith(magic):
            return reaches_its_end(data)
        if magic.startswith(start):  # of an empty file too
            return False
    return None


def png_is_whole(data: bytes) -> bool:
    """Whether the chunks of a PNG file follow each other up to the one that ends it."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + int(length)
        if kind == b"IEND":
            return at <= len(data)
        if not kind.isalpha():  # zeros again
            return False
    return False


def _jpeg(data: bytes) -> bool:
    """Walks the segments: an embedded thumbnail has an end of its own, so the last bytes alone prove nothing."""
    return any(kind == _JPEG_END for kind, _ in jpeg_segments(data))


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG file and where what they announce begins, as far as the data reaches."""
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        at = found.end()
        kind = found[1][0]
        yield kind, at
        if kind not in _JPEG_WITHOUT_LENGTH:
            if at + 2 > len(data):
                return
            at += struct.unpack_from(">H", data, at)[0]


def _bmp(data: bytes) -> bool | None:
    if len(data) < 6:
        return False
    size = int(struct.unpack_from("<I", data, 2)[0])
    return len(data) >= size if size else None  # some programs leave it 0


def _webp(data: bytes) -> bool | None:
    if len(data) < 12:
        return False
    if data[8:12] != b"WEBP":
        return None
    size = int(struct.unpack_from("<I", data, 4)[0])
    return size >= 12 and len(data) >= 8 + size  # less holds no picture: a program writes the size last


_FORMATS: Final = {b"\x89PNG\r\n\x1a\n": png_is_whole, b"\xff\xd8\xff": _jpeg, b"BM": _bmp, b"RIFF": _webp}
