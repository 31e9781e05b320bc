"""Real inputs to begin with: small, and all made here, by our own code and by encoders that are not under test."""

import io
import json
from functools import cache
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from inspectad.demo_part import render_part

CORPUS = Path(__file__).parent / "corpus"
"""Inputs that once found a bug, and those of formats that take a training to make: a folder for each target."""


def kept(target: str) -> list[bytes]:
    """What lies in the corpus of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


@cache
def images() -> tuple[bytes, ...]:
    """All formats of `IMAGE_SUFFIXES`, grey and colour, 8 and 16 bits, with and without what cameras add."""
    part = np.ascontiguousarray(render_part(3, "scratch", (160, 192)).image[40:64, 50:82])
    deep = part.astype(np.uint16) * 257
    found = [_encoded(".bmp", part), _encoded(".bmp", part[..., 0]), _encoded(".png", deep), _encoded(".tif", deep)]
    found += [_encoded(".tif", part, cv2.IMWRITE_TIFF_COMPRESSION, kind) for kind in (1, 5, 7, 8, 32773)]
    found += [_encoded(suffix, part[..., 0]) for suffix in (".pgm", ".pbm", ".pnm")] + [_encoded(".ppm", deep)]
    found += [_encoded(".pgm", part[..., 0], cv2.IMWRITE_PXM_BINARY, 0), _encoded(".jpg", part[..., 0])]
    found += [b"P3 # comment\n2 1\n255\n1 2 3 4 5 6\n", b"P1\n3 2\n1 0 1\n0 1 0\n"]
    for kind, more in (
        ("PNG", {}),
        ("PNG", {"dpi": (300, 300), "exif": _turned()}),
        ("JPEG", {"quality": 60}),
        ("JPEG", {"progressive": True, "exif": _turned(), "icc_profile": b"profile"}),
        ("JPEG", {"restart_marker_blocks": 2, "subsampling": "4:4:4"}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 40, "exif": _turned()}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True, "tile_size": (16, 16)}),
        ("BMP", {}),
        ("TIFF", {"compression": "jpeg"}),
    ):
        found.append(_by_pillow(part, kind, **more))
    with_alpha = np.dstack([part, part[..., 1]])
    found += [_by_pillow(with_alpha, "PNG"), _by_pillow(with_alpha, "WEBP"), _by_pillow(with_alpha, "TIFF")]
    palette = Image.fromarray(part).quantize(16)
    found += [
        _saved(palette, "PNG"),
        _saved(palette, "BMP"),
        _saved(palette, "TIFF"),
        _saved(palette.convert("1"), "PNG"),
    ]
    for big, tiles in product((False, True), (None, (16, 16))):
        found.append(_by_tifffile(deep if big else part, bigtiff=big, byteorder=">" if tiles else "<", tile=tiles))
    found.append(_by_tifffile(np.moveaxis(part, 2, 0), planarconfig="separate", photometric="rgb"))
    return tuple(found)


def masks() -> tuple[bytes, ...]:
    """Masks of 32 x 24 px, right and wrong ones."""
    mask = np.zeros((24, 32), np.uint8)
    mask[4:9, 3:20] = 255
    found = [
        _encoded(suffix, m) for suffix in (".png", ".bmp", ".tif", ".pgm") for m in (mask, mask.T.copy(), mask // 3)
    ]
    return (*found, _by_pillow(mask, "JPEG2000"), _saved(Image.fromarray(mask).convert("1"), "PNG"), *images()[:6])


def path_lists() -> tuple[bytes, ...]:
    """Lists for ``scan -``, by lines and by zero bytes."""
    return (
        b"a.png\nsub/b.png\r\n\n./c.png",
        b"/etc/passwd\n../../x.png\n..\n.\n/\n//\n",
        b"a\nb.png\0c.png\0\0" + bytes(range(1, 256)),
        "é/漢.png\n\u202e.png\n".encode() + b"\xff\xfe.png\n",
        b"=1+1.png\n-x\n~/.ssh/id\n$HOME\n" + b"x" * 5000,
        b"C:\\windows\\x.png\nC:/x.png\n\\\\host\\share\\y.png\n",
    )


def results() -> tuple[bytes, ...]:
    """Results files as scans leave them: the first byte says which format."""
    from inspectad.records import Box, Inspection, Verdict
    from inspectad.results import CSV_HEADER, format_row

    rows = [
        Inspection(image="a.png", verdict=Verdict.OK, score=0.5, threshold=1.0, severity=0.5, model="0123456789ab"),
        Inspection(image='=b,"\n;.png', verdict=Verdict.NG, score=2, threshold=1, boxes=(Box(1, 2, 3, 4),), model="0"),
        Inspection(image="sub/é.png", verdict=Verdict.UNREADABLE, error="the file is empty (0 bytes)"),
    ]
    csv = b"c" + CSV_HEADER + b"".join(format_row(row, "csv") for row in rows)
    return (csv, b"c", b"j" + b"".join(format_row(row, "jsonl") for row in rows), csv[:-7])


def manifests() -> tuple[bytes, ...]:
    """Manifests of models, as JSON."""
    return tuple(kept("manifest"))


def manifest_words() -> tuple[bytes, ...]:
    """Keys and values that a manifest may have."""
    keys: set[str] = set()
    for text in manifests():
        keys.update(_keys(json.loads(text)))
    return (
        *(json.dumps(key).encode() for key in sorted(keys)),
        b"null",
        b"1e999",
        b"-1",
        b"{}",
        b"[",
        b"NaN",
        b'""',
        b"1e400",
    )


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in _keys(inner)}
    return set()


def _encoded(suffix: str, image: npt.NDArray[np.generic], *options: int) -> bytes:
    return cv2.imencode(suffix, image, list(options))[1].tobytes()


def _by_pillow(image: npt.NDArray[np.uint8], kind: str, **options: object) -> bytes:
    return _saved(Image.fromarray(image), kind, **options)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _by_tifffile(image: npt.NDArray[np.generic], **options: object) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, image, metadata=None, **options)
    return data.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
