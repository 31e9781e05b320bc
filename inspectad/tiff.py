"""TIFF files that OpenCV 5 decodes to other pixels than are in them; each found by comparing it with tifffile."""

import struct
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from inspectad.errors import UnreadableImageError

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA = 258, 262, 277, 284, 338  # tags, TIFF 6.0
_MIN_IS_WHITE, _SEPARATE_PLANES, _UNASSOCIATED_ALPHA = 0, 2, 2


def is_tiff(data: bytes) -> bool:
    """Whether the bytes begin like a TIFF or BigTIFF file."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_tiff(data: bytes, pixels: npt.NDArray[np.generic] | None) -> None:
    """Refuse what would be judged by wrong pixels.

    Args:
        data: the file.
        pixels: what OpenCV made of it in colour, or None.
    Raises:
        UnreadableImageError: says which kind it is and how to export it instead.
    """
    tags = _tags(data)
    is_deep = pixels is not None and pixels.dtype == np.uint16
    if pixels is None:
        _refuse_other_types(data)
    elif is_deep and tags.get(_PLANAR) == _SEPARATE_PLANES:
        raise UnreadableImageError("a 16-bit TIFF with its colours in separate planes; export it interleaved")
    elif is_deep and tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE:
        raise UnreadableImageError("a 16-bit TIFF in which 0 is white; export it with 0 as black")
    elif tags.get(_SAMPLES) == 2 and tags.get(_BITS) == 16:
        raise UnreadableImageError("a 16-bit grey TIFF with transparency; export it without an alpha channel")
    elif not is_deep and tags.get(_EXTRA) == _UNASSOCIATED_ALPHA and _is_transparent(data):
        # libtiff multiplies the colours with the transparency
        raise UnreadableImageError("a TIFF with transparent pixels; export it without an alpha channel")


def _refuse_other_types(data: bytes) -> None:
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is not None and stored.dtype not in (np.uint8, np.uint16):
        raise UnreadableImageError(
            f"pixels of type {stored.dtype} have no fixed white level; export it with 8 or 16 bits a channel"
        )


def _is_transparent(data: bytes) -> bool:
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return stored is not None and stored.ndim == 3 and stored.shape[2] == 4 and bool(stored[..., 3].min() < 255)


def tiff_sizes(data: bytes) -> list[tuple[int, int]]:
    """Width and height of the first page and, if it is stored in tiles, of a tile; [] where it does not say so.

    A decoder takes memory for a whole tile, however small the page. Of a tag that is there twice, the larger counts.
    """
    found: dict[int, int] = {}
    for tag, kind, at in _entries(data):
        if tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT) and (code := _INTEGERS.get(kind)):
            (value,) = struct.unpack_from(_order(data) + code, data, at)
            found[tag] = max(found.get(tag, 0), int(value))
    sizes = [
        (found[w], found[h]) for w, h in ((_WIDTH, _HEIGHT), (_TILE_WIDTH, _TILE_HEIGHT)) if {w, h} <= found.keys()
    ]
    return sizes if _WIDTH in found and _HEIGHT in found else []


_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # TIFF's types that libtiff takes


def _order(data: bytes) -> str:
    return "<" if data[:1] == b"I" else ">"


def _entries(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, type and place of the value of each entry of the first page's directory. Raises: struct.error."""
    order, is_big = _order(data), data[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    if start > len(data):  # beyond 2^63 `struct` raises an error of another kind
        raise struct.error("a directory behind the end")
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    for i in range(min(count, 4096)):
        at = start + (8 + 20 * i if is_big else 2 + 12 * i)
        tag, kind = struct.unpack_from(order + "HH", data, at)
        yield tag, kind, at + (12 if is_big else 8)


def _tags(data: bytes) -> dict[int, int]:
    """First value of each 16-bit tag of the first page that is stored in place."""
    found: dict[int, int] = {}
    try:
        for tag, _, at in _entries(data):
            (found[tag],) = struct.unpack_from(_order(data) + "H", data, at)
    except struct.error:
        pass  # a damaged directory: the decoder has its own opinion of it
    return found
