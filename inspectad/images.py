"""From a file's bytes to the pixels a network sees: decoding, and the ONE resize rule of train, export and scan."""

import math
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
import numpy.typing as npt

from inspectad.end_mark import png_is_whole
from inspectad.errors import UnreadableImageError
from inspectad.image_header import check_header
from inspectad.image_limits import check_file_bytes
from inspectad.jpeg import jpeg_reduction, jpeg_size
from inspectad.records import ByteArray
from inspectad.tiff import check_tiff, is_tiff

RESIZE_RULE: Final = "jpeg-reduced-area-down-linear-up"
"""Name of the resize rule below, stored with every model: a model made under another rule is refused."""

FULL_SCALES: Final = (255, 1023, 4095, 16383, 65535)
"""White levels of 8-, 10-, 12-, 14- and 16-bit images. Above 8 bits the file says only 16: see `full_scale_of`."""

_IMREAD: Final = {
    1: cv2.IMREAD_COLOR_BGR | cv2.IMREAD_ANYDEPTH,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_NO_FILE: Final = "not a file (a folder, pipe or device); name the image itself"
_PAUSE_S: Final = 0.1
_PART_BYTES: Final = 4 * 2**20
STRIDE: Final = 16
MIN_INPUT_PX: Final = 64
MAX_INPUT_PX: Final = 2048
_BASE_PX = 320  # longer side of a square part
_MIN_SHORT_PX = 256  # a long part keeps this much on its short side, until its long side reaches the limit
_MAX_LONG_PX = 1024


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Pixels as stored, upright.

    Attributes:
        pixels: (H, W, 3) RGB, uint8 or uint16. Grey and palette images are expanded, EXIF orientation is applied,
            transparency is ignored (the colour stored beneath it is what is inspected).
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

    @property
    def is_8_bit(self) -> bool:
        return self.pixels.dtype == np.uint8

    @property
    def size_hw(self) -> tuple[int, int]:
        return (self.pixels.shape[0], self.pixels.shape[1])


def read_image(path: Path) -> DecodedImage:
    """Read and decode one file.

    Raises:
        UnreadableImageError: it is missing, empty, truncated, not an image, or of a kind that cannot be judged.
    """
    return decode_image(read_file(path))


def read_file(path: Path, tries: int = 3, on_part: Callable[[], None] = lambda: None) -> bytes:
    """The bytes of a regular file, all of one state of it.

    Args:
        tries: how often it is read, with a pause between, when it changes meanwhile.
        on_part: told whenever a part of it has come, so that a slow drive can be told from one that hangs.
    Raises: UnreadableImageError: also of a pipe or device, which would block for ever.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: that alone has effects on some devices
            raise UnreadableImageError(_NO_FILE)
        for left in reversed(range(tries)):
            data = _read_unchanged(path, on_part)
            if data is not None:
                return data
            if left:
                time.sleep(_PAUSE_S)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UnreadableImageError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    raise UnreadableImageError("it changed while it was read; write images under another name and rename them")


def _read_unchanged(path: Path, on_part: Callable[[], None]) -> bytes | None:
    """None when the file changed meanwhile, or when another program keeps it for itself just now."""
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):  # it was one a moment ago
                raise UnreadableImageError(_NO_FILE)
            check_file_bytes(before.st_size)
            parts = []
            while part := file.read(_PART_BYTES):
                parts.append(part)
                on_part()
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            after = os.fstat(file.fileno())
    except BlockingIOError:
        return None
    is_same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return data if is_same and len(data) == after.st_size else None


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for the other end, were it a pipe by now."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """What the resize rule makes of a file.

    Attributes:
        pixels: (h, w, 3) uint8 RGB at the input size, if one was given.
        source: (H, W, 3) uint8 RGB as in the file; None when it was decoded smaller, see `inspectad.jpeg`.
        size_hw: of the file, upright.
    """

    pixels: ByteArray
    source: ByteArray | None
    size_hw: tuple[int, int]


def load_image(data: bytes, size_hw: tuple[int, int] | None, full_scale: int) -> LoadedImage:
    """From a file's bytes to what the network sees: the resize rule, from its beginning.

    Args:
        data: of the file.
        size_hw: the input size; None leaves the image as it is, for tiles to be cut from it.
        full_scale: of the training images, see `full_scale_of`.

    Raises: UnreadableImageError.
    """
    reduction = 1 if size_hw is None else jpeg_reduction(data, size_hw)
    decoded = to_8_bit(decode_image(data, reduction), full_scale)
    height, width = decoded.shape[:2]
    if size_hw is None:
        return LoadedImage(decoded, decoded, (height, width))
    if reduction == 1:
        return LoadedImage(resize(decoded, size_hw), decoded, (height, width))
    stored = jpeg_size(data)
    assert stored is not None  # else there were no reduction
    is_turned = (height, width) != (-(-stored[0] // reduction), -(-stored[1] // reduction))
    return LoadedImage(resize(decoded, size_hw), None, stored[::-1] if is_turned else stored)


def decode_image(data: bytes, reduction: int = 1) -> DecodedImage:
    """Decode an image file's bytes. OpenCV 5 refuses truncated files of every format tried; 4 did not.

    Args: reduction: 2, 4 or 8 to decode a JPEG at so much less than its size (rounded up).
    Raises: UnreadableImageError; for too many pixels (`inspectad.image_limits`) before memory is taken for them.
    """
    if not data:
        raise UnreadableImageError("the file is empty (0 bytes); copy it again")
    check_header(data)
    cv2.utils.logging.setLogLevel(
        cv2.utils.logging.LOG_LEVEL_SILENT
    )  # the reason goes into the row, not between the progress lines
    if data.startswith(b"\x89PNG") and not png_is_whole(data):
        # OpenCV would take the memory for a chunk that claims to be of gigabytes, and libpng write to stderr.
        raise UnreadableImageError("a truncated PNG file; copy or export it again")
    try:
        # Blue first: asked for red first, OpenCV 5.0 leaves the pixels of a 16-bit colour TIFF unwritten.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _IMREAD[reduction])
        if is_tiff(data):
            check_tiff(data, pixels)
    except cv2.error as error:
        raise UnreadableImageError(f"cannot be decoded: {error.err}") from error
    if pixels is None:
        raise UnreadableImageError("not an image, or a damaged or truncated one; copy or export it again")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UnreadableImageError(
            f"pixels of type {pixels.dtype} have no fixed white level; export it with 8 or 16 bits a channel"
        )
    return DecodedImage(cast("npt.NDArray[np.uint8]", cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))


def full_scale_of(images_max: int, *, is_8_bit: bool) -> int:
    """White level of a set of images: 255 for 8-bit files, else the smallest of 10, 12, 14, 16 bits that holds them.

    Cameras store 10, 12 and 14 bits in 16-bit files. Dividing by 65535 would make such images nearly black,
    and clipping to 255 nearly white; so the level is read off the training images and stored with the model.
    """
    if is_8_bit:
        return FULL_SCALES[0]
    return next(level for level in FULL_SCALES[1:] if images_max <= level)


def to_8_bit(image: DecodedImage, full_scale: int) -> ByteArray:
    """Scale to 0..255, (H, W, 3) uint8.

    Raises:
        UnreadableImageError: the image's depth is not that of the training images, so no scale is known to be right.
    """
    pixels = image.pixels
    if pixels.dtype == np.uint8:
        if full_scale != FULL_SCALES[0]:
            raise UnreadableImageError(
                f"8-bit image, but the model was trained on 16-bit files with white at {full_scale}; "
                "scan files as the camera made them for training, or train again on 8-bit ones"
            )
        return pixels.astype(np.uint8, copy=False)
    if full_scale == FULL_SCALES[0]:
        raise UnreadableImageError(
            "16-bit image, but the model was trained on 8-bit ones; scan 8-bit files or train again on 16-bit ones"
        )
    highest = int(pixels.max())
    if highest > full_scale:
        raise UnreadableImageError(
            f"pixel values up to {highest}, but white was {full_scale} in the training images; "
            "check the camera's bit depth, or train again with images of this kind"
        )
    scaled = cv2.convertScaleAbs(pixels, alpha=255.0 / full_scale)
    return np.asarray(scaled, np.uint8)


def resize(image: ByteArray, size_hw: tuple[int, int]) -> ByteArray:
    """The one resize rule: area averaging on an axis that shrinks (no aliasing), linear on one that grows.

    Of a file, `load_image` is the whole rule: a large JPEG is decoded smaller before.

    Args:
        image: (H, W, 3) or (H, W), uint8.
        size_hw: height and width wanted.
    """
    height, width = size_hw
    smaller = (min(height, image.shape[0]), min(width, image.shape[1]))
    if smaller != image.shape[:2]:
        image = np.asarray(cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    if (height, width) != image.shape[:2]:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return image


def choose_input_size(
    sizes_hw: Sequence[tuple[int, int]], longer_px: int | None = None, scale: float = 1.0
) -> tuple[int, int]:
    """Input size (H, W) for a set of images: their median aspect ratio, multiples of the stride.

    Without ``longer_px``: about 320 x 320 pixels of area for parts up to 1.56 : 1; longer ones keep 256 on the
    short side until the long side reaches 1,024, since a long part squashed small loses its thin defects.

    Args:
        sizes_hw: height and width of the training images, at least one.
        longer_px: the longer side wanted (``--size``).
        scale: without it, so many times the usual length.
    """
    aspect = math.exp(float(np.median([math.log(w / h) for h, w in sizes_hw])))  # W / H
    stretch = max(aspect, 1 / aspect)
    if longer_px is not None:
        longer = float(longer_px)
    else:
        longer = min(scale * max(_BASE_PX / math.sqrt(stretch), _MIN_SHORT_PX) * stretch, _MAX_LONG_PX)
    long_px, short_px = _to_stride(longer), _to_stride(longer / stretch)
    return (short_px, long_px) if aspect >= 1 else (long_px, short_px)


def _to_stride(pixels: float) -> int:
    return min(max(round(pixels / STRIDE) * STRIDE, MIN_INPUT_PX), MAX_INPUT_PX)
