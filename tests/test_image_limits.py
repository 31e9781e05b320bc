"""Images of too many pixels are refused by their header: before memory is taken, in every format, by a limit that can
be changed."""

import csv
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import RunCli, Trained, cli_environment
from PIL import Image

from inspectad.errors import UnreadableImageError, UsageError
from inspectad.image_files import IMAGE_SUFFIXES
from inspectad.image_header import check_header
from inspectad.image_limits import DEFAULT_MEGAPIXELS, VARIABLE, check_file_bytes, max_pixels, set_max_megapixels
from inspectad.images import decode_image, read_file

SIDE = 46_341  # squared, just above 2^31
SMALL = np.zeros((5, 9, 3), np.uint8)


def saved(kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(SMALL).save(data, kind, **options)
    return data.getvalue()


def png(width: int, height: int) -> bytes:
    data = bytearray(saved("PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg(width: int, height: int, **options: object) -> bytes:
    data = bytearray(saved("JPEG", **options))
    at = data.find(b"\xff\xc2" if options else b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    data = bytearray(saved("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def tiff(tags: dict[int, int], *, big: bool = False, order: str = "<") -> bytes:
    """A directory of 32-bit values and nothing else (TIFF 6.0, and BigTIFF)."""
    head = {"<": b"II", ">": b"MM"}[order]
    if big:
        entries = b"".join(struct.pack(order + "HHQII", tag, 4, 1, value, 0) for tag, value in tags.items())
        return head + struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(tags)) + entries + bytes(8)
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    return head + struct.pack(order + "HIH", 42, 8, len(tags)) + entries + bytes(4)


def webp(width: int, height: int) -> bytes:
    chunk = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    inner = saved("WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunk) + len(inner)) + b"WEBP" + chunk + inner


def webp_lossless(width: int, height: int) -> bytes:
    data = bytearray(saved("WEBP", lossless=True))
    struct.pack_into("<I", data, 21, (width - 1) | (height - 1) << 14)
    return bytes(data)


def webp_lossy(width: int, height: int) -> bytes:
    data = bytearray(saved("WEBP"))
    struct.pack_into("<HH", data, 26, width, height)
    return bytes(data)


def jp2(width: int, height: int, tile: int | None = None, **options: object) -> bytes:
    data = bytearray(saved("JPEG2000", **options))
    at = data.find(b"\xff\x4f\xff\x51") + 8
    data[at : at + 24] = struct.pack(">6I", width, height, 0, 0, tile or width, tile or height)
    return bytes(data)


BOMBS = {
    "png": png(SIDE, SIDE),
    "jpeg": jpeg(65_500, 65_500),
    "progressive jpeg": jpeg(65_500, 65_500, progressive=True),
    "bmp": bmp(SIDE, SIDE),
    "bmp from its top": bmp(SIDE, -SIDE),
    "tiff": tiff({256: SIDE, 257: SIDE}),
    "big tiff, big end first": tiff({256: SIDE, 257: SIDE}, big=True, order=">"),
    "tile of a tiff": tiff({256: 8, 257: 8, 322: SIDE, 323: SIDE}),
    "tiff that says it twice": tiff({256: 8, 257: SIDE, 258: 8})[:-16]
    + struct.pack("<HHII", 256, 4, 1, SIDE)
    + bytes(4),
    "webp": webp(SIDE, SIDE),
    "jp2": jp2(SIDE, SIDE),
    "j2k": jp2(SIDE, SIDE, no_jp2=True),
    "pgm": b"P5\n%d %d\n255\n" % (SIDE, SIDE),
    "pbm, with comments": b"P1 # a\n# b\n %d\n#\n%d " % (SIDE, SIDE),
    "ppm": b"P6 %d %d 65535 " % (SIDE, SIDE),
}


@pytest.mark.parametrize("what", BOMBS)
def test_an_image_that_claims_2_gigapixels_is_refused_by_its_header(what: str) -> None:
    with pytest.raises(UnreadableImageError, match=r"pixels, more than the limit of 400 megapixels.*--max-megapixels"):
        decode_image(BOMBS[what])


def test_no_memory_is_taken_for_bombs(tmp_path: Path) -> None:
    """The oracle is the operating system: the largest resident size of a process that is given all of them."""
    for number, data in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.bin").write_bytes(data)
    program = """
import pathlib, resource, sys
from inspectad.errors import UnreadableImageError
from inspectad.images import read_image
before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        read_image(path)
    except UnreadableImageError:
        refused += 1
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, env=cli_environment()
    )
    refused, taken = map(int, done.stdout.split())
    assert refused == len(BOMBS)
    assert taken < 50_000 * (1024 if sys.platform == "darwin" else 1)  # KB; bytes on macOS


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_the_header_says_what_is_decoded(suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (24, 37, 3), np.uint8)
    data = io.BytesIO()
    if kind := {".dib": "BMP", ".jfif": "JPEG", ".jp2": "JPEG2000"}.get(suffix):  # which OpenCV does not write
        Image.fromarray(image).save(data, kind)
    else:
        data.write(cv2.imencode(suffix, image[..., 0] if suffix in (".pgm", ".pbm") else image)[1].tobytes())
    assert check_header(data.getvalue()) == image.shape[1::-1]
    assert decode_image(data.getvalue()).size_hw == image.shape[:2]


@pytest.mark.parametrize(
    ("make", "size"), [(webp_lossless, (300, 200)), (webp_lossy, (300, 200)), (webp, (70_000, 3)), (jp2, (8, 70_000))]
)
def test_sizes_that_are_packed_into_bits(make, size: tuple[int, int]) -> None:
    assert check_header(make(*size)) == size


def test_formats_that_are_not_named_never_reach_a_decoder() -> None:
    gif = saved("GIF")
    avif = cv2.imencode(".avif", SMALL)[1].tobytes()
    for data in (gif, avif, b"P7\nWIDTH 2\n", b"#?RADIANCE\n", b"Pf\n2 2\n-1\n", b"\x59\xa6\x6a\x95" + bytes(99)):
        with pytest.raises(UnreadableImageError, match=r"not an image, or of a format that is not read"):
            decode_image(data)


def test_a_jpeg_that_goes_over_its_pixels_again_and_again_is_refused() -> None:
    data = saved("JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    assert decode_image(data).size_hw == SMALL.shape[:2]
    with pytest.raises(UnreadableImageError, match=r"more than 200 scans"):
        decode_image(data[:-2] + scan * 300 + data[-2:])


def test_a_jpeg_2000_of_very_many_tiles_or_channels_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match=r"65536 tiles"):
        decode_image(jp2(256, 256, tile=1))
    data = bytearray(jp2(9, 5))
    at = data.find(b"\xff\x4f\xff\x51") + 40
    data[at : at + 2] = b"\x40\x00"
    with pytest.raises(UnreadableImageError, match=r"16384 channels"):
        decode_image(bytes(data))


@pytest.fixture
def _own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")


@pytest.mark.usefixtures("_own_limit")
def test_the_limit_is_exact_and_can_be_raised() -> None:
    edge = cv2.imencode(".png", np.zeros((100, 200), np.uint8))[1].tobytes()
    set_max_megapixels(0.02)
    assert decode_image(edge).size_hw == (100, 200)
    set_max_megapixels(0.019_999)
    with pytest.raises(UnreadableImageError, match=r"200 x 100 pixels, more than the limit of 0\.019999 megapixels"):
        decode_image(edge)


@pytest.mark.usefixtures("_own_limit")
@pytest.mark.parametrize("value", [0, -1, 1100, float("nan"), float("inf")])
def test_limits_that_cannot_be_are_wrong_usage(value: float) -> None:
    with pytest.raises(UsageError, match=r"give 0.01 to 1074"):
        set_max_megapixels(value)
    assert max_pixels() == 1e6


@pytest.mark.parametrize("text", ["lots", "", "1e9", "nan"])
def test_a_variable_that_is_no_limit_is_wrong_usage(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=VARIABLE):
        max_pixels()


def test_a_file_longer_than_any_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert max_pixels() == DEFAULT_MEGAPIXELS * 1e6
    check_file_bytes(2**31 - 1)
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(50 * 10**9)  # takes no space on the disk
    with pytest.raises(UnreadableImageError, match=r"50000000000 bytes, more than the 2147483647 "):
        read_file(path)
    monkeypatch.setenv(VARIABLE, "10")
    with path.open("wb") as file:
        file.truncate(200 * 10**6)
    with pytest.raises(UnreadableImageError, match=r"200000000 bytes, more than the 147108864 .*--max-megapixels"):
        read_file(path)


def test_a_scan_says_which_option_raises_the_limit(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    scan = ("scan", trained.good, "-m", trained.model, "-o", tmp_path)
    assert run_cli(*scan, "--max-megapixels", "0.02").returncode == 4
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["verdict"] for row in rows} == {"UNREADABLE"}
    assert all("192 x 160 pixels" in row["error"] and "--max-megapixels" in row["error"] for row in rows)
    assert run_cli(*scan, env={VARIABLE: "0.02"}).returncode == 4
    done = run_cli(*scan, "--max-megapixels", "0.04", "--format", "jsonl", env={VARIABLE: "0.02"})
    assert done.returncode == 0
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == len(rows)
    assert run_cli(*scan, "--max-megapixels", "2000").returncode == 2
    refused = run_cli("train", trained.good, "-o", tmp_path / "model", "--max-megapixels", "0.02")
    assert refused.returncode == 1
    assert "192 x 160 pixels" in refused.stderr
