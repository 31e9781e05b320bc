"""Decoding against Pillow and tifffile, bit depths and the resize rule against closed forms."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from inspectad.errors import UnreadableImageError
from inspectad.images import (
    FULL_SCALES,
    MAX_INPUT_PX,
    MIN_INPUT_PX,
    STRIDE,
    DecodedImage,
    choose_input_size,
    decode_image,
    full_scale_of,
    read_image,
    resize,
    to_8_bit,
)

HW = (31, 44)
RNG = np.random.default_rng(7)
SMOOTH = np.stack(  # (31, 44, 3): what a JPEG can hold, no two channels alike, no symmetry
    [np.add.outer(4 * np.arange(31), np.arange(44)), np.add.outer(np.arange(31), 4 * np.arange(44)), np.full(HW, 60)], 2
).astype(np.uint8)
NOISE = RNG.integers(0, 256, (*HW, 3)).astype(np.uint8)
NOISE_16 = RNG.integers(0, 65536, (*HW, 3)).astype(np.uint16)
ALPHA = RNG.integers(0, 256, HW).astype(np.uint8)
NO_DEADLINE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def pillow(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """A file written by Pillow."""
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def tiff(image: np.ndarray, **options: Any) -> bytes:
    """A file written by tifffile."""
    out = io.BytesIO()
    tifffile.imwrite(out, image, **options)
    return out.getvalue()


def png_16(image: np.ndarray) -> bytes:
    """A 16-bit PNG, written by hand: Pillow has no 16-bit RGB."""
    height, width = image.shape[:2]
    colour = 2 if image.ndim == 3 else 0
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def seen_by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def in_mode(mode: str, pixels: np.ndarray = NOISE) -> Image.Image:
    return Image.fromarray(pixels).convert(mode)


LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}, "PPM": {}, "JPEG2000": {}}
MODES = {
    "PNG": ("RGB", "L", "P", "RGBA", "LA", "1"),
    "BMP": ("RGB", "L", "P", "RGBA", "1"),
    "TIFF": ("RGB", "L", "P", "RGBA", "1"),
    "WEBP": ("RGB", "L", "RGBA"),
    "PPM": ("RGB", "L", "1"),
    "JPEG2000": ("RGB", "L", "RGBA"),
}


@pytest.mark.parametrize(("kind", "mode"), [(k, m) for k, modes in MODES.items() for m in modes])
def test_lossless_files_give_the_pixels_pillow_gives(kind: str, mode: str) -> None:
    data = pillow(in_mode(mode), kind, **LOSSLESS[kind])
    decoded = decode_image(data)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.is_8_bit
    assert decoded.size_hw == HW
    np.testing.assert_array_equal(decoded.pixels, seen_by_pillow(data))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 97}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_differs_from_pillow_by_rounding_only(mode: str, options: dict[str, Any]) -> None:
    data = pillow(in_mode(mode, SMOOTH), "JPEG", **options)
    difference = np.abs(decode_image(data).pixels.astype(int) - seen_by_pillow(data))
    assert difference.max() <= 3
    assert difference.mean() <= 1


def test_lossy_webp_differs_from_pillow_by_rounding_only() -> None:
    data = pillow(SMOOTH, "WEBP", quality=90)
    assert np.abs(decode_image(data).pixels.astype(int) - seen_by_pillow(data)).max() <= 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"tile": (32, 32)},
        {"rowsperstrip": 5},
        {"compression": "zlib", "predictor": True},
        {"bigtiff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_tiff_layouts_give_the_pixels_tifffile_wrote(colour: str, bits: int, options: dict[str, Any]) -> None:
    pixels = NOISE if bits == 8 else NOISE_16
    if colour == "grey":
        data, expected = tiff(pixels[..., 1], photometric="minisblack", **options), three(pixels[..., 1])
    else:
        data, expected = tiff(pixels, photometric="rgb", **options), pixels
    decoded = decode_image(data)
    assert decoded.pixels.dtype == expected.dtype
    np.testing.assert_array_equal(decoded.pixels, expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_planar_tiff_is_read_right_or_refused(bits: int) -> None:
    pixels = NOISE if bits == 8 else NOISE_16
    data = tiff(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), photometric="rgb", planarconfig="separate")
    assert_right_or_refused(data, pixels)


def assert_right_or_refused(data: bytes, expected: np.ndarray) -> None:
    try:
        pixels = decode_image(data).pixels
    except UnreadableImageError:
        return
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)


def test_decoding_does_not_depend_on_what_was_decoded_before() -> None:
    """Pixels that the decoder leaves unwritten would show what was in memory."""
    data = tiff(NOISE_16, photometric="rgb")
    seen = []
    for level in (0, 40000):
        decode_image(tiff(np.full_like(NOISE_16, level), photometric="rgb"))
        seen.append(decode_image(data).pixels)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_first_page_of_a_stack_is_read() -> None:
    data = tiff(np.stack([NOISE[..., 0], NOISE[..., 1]]), photometric="minisblack")
    np.testing.assert_array_equal(decode_image(data).pixels, three(NOISE[..., 0]))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(pillow(np.dstack([NOISE, ALPHA]), "PNG"), id="png"),
        pytest.param(pillow(np.dstack([NOISE, ALPHA]), "WEBP", lossless=True, exact=True), id="webp"),
        pytest.param(tiff(np.dstack([NOISE, ALPHA]), photometric="rgb", extrasamples=["assocalpha"]), id="tiff-assoc"),
    ],
)
def test_transparency_is_ignored_and_the_stored_colour_inspected(data: bytes) -> None:
    np.testing.assert_array_equal(decode_image(data).pixels, NOISE)


def test_tiff_colours_are_not_multiplied_with_their_transparency() -> None:
    data = tiff(np.dstack([NOISE, ALPHA]), photometric="rgb", extrasamples=["unassalpha"])
    assert_right_or_refused(data, NOISE)


def test_opaque_tiff_with_an_alpha_channel_is_read() -> None:
    data = tiff(np.dstack([NOISE, np.full_like(ALPHA, 255)]), photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode_image(data).pixels, NOISE)


def test_16_bit_alpha_is_ignored() -> None:
    data = tiff(np.dstack([NOISE_16, NOISE_16[..., 0]]), photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode_image(data).pixels, NOISE_16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pillow(SMOOTH, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = seen_by_pillow(data)
    decoded = decode_image(data)
    assert decoded.size_hw == (HW if orientation < 5 else HW[::-1]) == expected.shape[:2]
    assert np.abs(decoded.pixels.astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("container", ["png", "tiff"])
@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_deep_images_keep_every_bit(colour: str, container: str, bits: int) -> None:
    pixels = NOISE_16 >> (16 - bits)
    if colour == "grey":
        pixels = np.ascontiguousarray(pixels[..., 0])
    encoded = png_16(pixels) if container == "png" else tiff(pixels, photometric="rgb" if colour == "rgb" else None)
    decoded = decode_image(encoded)
    assert not decoded.is_8_bit
    assert decoded.pixels.dtype == np.uint16
    np.testing.assert_array_equal(decoded.pixels, pixels if colour == "rgb" else three(pixels))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int16, np.int32, np.uint32])
@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_tiff_pixels_without_a_white_level_are_refused(kind: type, colour: str) -> None:
    pixels = SMOOTH.astype(kind)
    data = tiff(pixels, photometric="rgb") if colour == "rgb" else tiff(pixels[..., 0])
    with pytest.raises(UnreadableImageError):
        decode_image(data)


@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_a_float_image_is_not_called_damaged(colour: str) -> None:
    pixels = SMOOTH.astype(np.float32) / 255
    with pytest.raises(UnreadableImageError, match=r"float32|white level"):
        decode_image(tiff(pixels, photometric="rgb") if colour == "rgb" else tiff(pixels[..., 0]))


def exif_turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


WHOLE_FILES = {
    "png": pillow(NOISE, "PNG"),
    "png-palette": pillow(in_mode("P"), "PNG"),
    "png-16": png_16(NOISE_16),
    "jpeg": pillow(SMOOTH, "JPEG"),
    "jpeg-progressive": pillow(SMOOTH, "JPEG", progressive=True),
    "jpeg-restart": pillow(SMOOTH, "JPEG", restart_marker_rows=1),
    "jpeg-grey": pillow(in_mode("L", SMOOTH), "JPEG"),
    "jpeg-cmyk": pillow(in_mode("CMYK", SMOOTH), "JPEG"),
    "jpeg-exif": pillow(SMOOTH, "JPEG", exif=exif_turned()),
    "bmp": pillow(NOISE, "BMP"),
    "bmp-palette": pillow(in_mode("P"), "BMP"),
    "tiff": pillow(NOISE, "TIFF"),
    "tiff-lzw": pillow(NOISE, "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": pillow(SMOOTH, "TIFF", compression="jpeg"),
    "tiff-fax": pillow(in_mode("1"), "TIFF", compression="group4"),
    # tifffile writes the directory in front, so a cut takes pixels and leaves the directory
    "tiff-strips": tiff(NOISE, photometric="rgb", rowsperstrip=4),
    "tiff-tiles": tiff(NOISE, photometric="rgb", tile=(32, 32)),
    "tiff-zlib": tiff(NOISE, photometric="rgb", rowsperstrip=4, compression="zlib"),
    "tiff-16-grey": tiff(NOISE_16[..., 0], photometric="minisblack", rowsperstrip=4),
    "tiff-16": tiff(NOISE_16, photometric="rgb", rowsperstrip=4),
    "webp": pillow(SMOOTH, "WEBP"),
    "webp-lossless": pillow(NOISE, "WEBP", lossless=True),
    "webp-alpha": pillow(np.dstack([NOISE, ALPHA]), "WEBP"),
    "ppm": pillow(NOISE, "PPM"),
    "pbm": pillow(in_mode("1"), "PPM"),
    "jpeg2000": pillow(NOISE, "JPEG2000"),
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_truncated_file_is_refused_or_gives_all_its_pixels(name: str) -> None:
    data = WHOLE_FILES[name]
    whole = decode_image(data).pixels
    cuts = {*range(1, min(64, len(data))), *range(len(data) - 48, len(data)), *range(1, len(data), 97)}
    refused = 0
    for cut in sorted(cuts):
        try:
            pixels = decode_image(data[:cut]).pixels
        except UnreadableImageError:
            refused += 1
            continue
        assert pixels.dtype == whole.dtype, f"cut at {cut} of {len(data)}"
        np.testing.assert_array_equal(pixels, whole, err_msg=f"cut at {cut} of {len(data)}")
    assert refused > len(cuts) // 2


@pytest.mark.parametrize("name", ["png", "png-palette", "png-16"])
def test_one_damaged_byte_in_png_pixels_is_noticed(name: str) -> None:
    """PNG has checksums: there is no excuse for a verdict on other pixels."""
    data = WHOLE_FILES[name]
    whole = decode_image(data).pixels
    start = data.index(b"IDAT") + 4
    for at in range(start, len(data) - 16, max(1, (len(data) - start) // 40)):
        assert_right_or_refused(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :], whole)


@NO_DEADLINE
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        decode_image(data)


@settings(NO_DEADLINE, max_examples=200)
@given(
    st.sampled_from(sorted(WHOLE_FILES)), st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), max_size=6)
)
def test_damaged_files_are_decoded_or_refused_and_nothing_else(name: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE_FILES[name])
    for at, change in damage:
        data[at % min(len(data), 512)] ^= change  # headers, where lengths and sizes are
    try:
        pixels = decode_image(bytes(data)).pixels
    except UnreadableImageError:
        return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.dtype in (np.uint8, np.uint16)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "cannot be opened: No such file"),
        (lambda path: path.mkdir(), "not a file|Is a directory"),
        (lambda path: path.write_bytes(b""), r"empty \(0 bytes\)"),
        (lambda path: path.write_text("no image"), "not an image"),
    ],
    ids=["missing", "folder", "empty", "text"],
)
def test_read_image_says_why_it_cannot(tmp_path: Path, make: Any, words: str) -> None:
    path = tmp_path / "image.png"
    make(path)
    with pytest.raises(UnreadableImageError, match=words):
        read_image(path)


@given(st.integers(0, 65535))
def test_full_scale_is_the_smallest_camera_depth_that_holds_the_value(highest: int) -> None:
    level = full_scale_of(highest, is_8_bit=False)
    bits = next(b for b in (10, 12, 14, 16) if highest < 2**b)
    assert level == 2**bits - 1


@given(st.integers(0, 255))
def test_full_scale_of_8_bit_files_is_255(highest: int) -> None:
    assert full_scale_of(highest, is_8_bit=True) == 255


@pytest.mark.parametrize("full_scale", FULL_SCALES[1:])
def test_to_8_bit_rounds_to_the_nearest_level(full_scale: int) -> None:
    values = np.arange(full_scale + 1, dtype=np.uint16)
    image = DecodedImage(three(values)[:, None])
    # nearest integer to value * 255 / full_scale in integers; full_scale is odd, so there are no ties
    expected = (2 * 255 * values.astype(np.int64) + full_scale) // (2 * full_scale)
    np.testing.assert_array_equal(to_8_bit(image, full_scale)[:, 0], three(expected))


def test_to_8_bit_leaves_8_bit_pixels_alone() -> None:
    np.testing.assert_array_equal(to_8_bit(DecodedImage(NOISE), 255), NOISE)


@pytest.mark.parametrize(
    ("pixels", "full_scale", "words"),
    [
        (NOISE, 4095, "8-bit image, but .* 16-bit files with white at 4095"),
        (NOISE_16, 255, "16-bit image, but .* 8-bit"),
        (np.full((2, 2, 3), 4096, np.uint16), 4095, "pixel values up to 4096, but white was 4095"),
    ],
    ids=["shallow", "deep", "above-white"],
)
def test_to_8_bit_refuses_another_depth(pixels: np.ndarray, full_scale: int, words: str) -> None:
    with pytest.raises(UnreadableImageError, match=words):
        to_8_bit(DecodedImage(pixels), full_scale)


@NO_DEADLINE
@given(
    factors=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    image=hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))),
)
def test_shrinking_by_whole_factors_is_the_mean_of_each_block(factors: tuple[int, int], image: np.ndarray) -> None:
    (fy, fx), (h, w) = factors, image.shape[:2]
    rng = np.random.default_rng(int(image.sum()))
    large = rng.integers(0, 256, (h * fy, w * fx, 3)).astype(np.uint8)
    means = large.reshape(h, fy, w, fx, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize(large, (h, w)) - means).max() <= 0.5 + 1e-3  # nearest integer, whichever way ties go


def test_shrinking_by_a_broken_factor_weighs_pixels_by_area() -> None:
    row = RNG.integers(0, 256, 7).astype(np.uint8)
    fine = np.repeat(row.astype(float), 3)  # 21 thirds; each of 3 outputs covers 7 of them
    expected = fine.reshape(3, 7).mean(axis=1)
    assert np.abs(resize(three(row[None, :]), (1, 3))[0, :, 0] - expected).max() <= 0.5 + 1e-3


def test_growing_is_linear_between_pixel_centres() -> None:
    row = np.array([[0, 100]], np.uint8)
    centres = (np.arange(8) + 0.5) / 4 - 0.5
    expected = np.interp(centres, [0, 1], [0, 100])
    assert np.abs(resize(row, (1, 8))[0] - expected).max() <= 1


@NO_DEADLINE
@given(
    source=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    target=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    level=st.integers(0, 255),
    channels=st.sampled_from([(), (3,)]),
)
def test_resize_keeps_constants_and_gives_the_size_asked_for(
    source: tuple[int, int], target: tuple[int, int], level: int, channels: tuple[int, ...]
) -> None:
    resized = resize(np.full((*source, *channels), level, np.uint8), target)
    assert resized.shape == (*target, *channels)
    assert resized.dtype == np.uint8
    assert (resized == level).all()


def test_resize_to_the_same_size_changes_nothing() -> None:
    np.testing.assert_array_equal(resize(NOISE, HW), NOISE)


def test_a_thin_defect_survives_shrinking_as_its_share_of_the_area() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 21] = 240  # nearest or linear sampling at 1/8 would miss it or keep it by luck
    assert set(np.unique(resize(image, (8, 8))[:, 2])) == {240 // 8}


SIDES = st.integers(64, 6000)


@given(SIDES, SIDES, st.none() | st.integers(64, 2048))
def test_input_sides_are_multiples_of_the_stride_within_limits(height: int, width: int, longer: int | None) -> None:
    for side in choose_input_size([(height, width)], longer):
        assert side % STRIDE == 0
        assert MIN_INPUT_PX <= side <= MAX_INPUT_PX


@given(SIDES, SIDES, st.none() | st.integers(64, 2048))
def test_input_keeps_the_aspect_but_for_rounding(height: int, width: int, longer: int | None) -> None:
    h, w = choose_input_size([(height, width)], longer)
    if height >= width:
        assert h >= w
    if width >= height:
        assert w >= h
    small, large = min(h, w), max(h, w)
    stretch = max(width / height, height / width)
    # both sides are off by half a stride at most, unless the short one was lifted to the smallest size
    lowest = (large - STRIDE / 2) / stretch - STRIDE / 2
    highest = max((large + STRIDE / 2) / stretch + STRIDE / 2, MIN_INPUT_PX)
    assert lowest <= small <= highest


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((500, 500), (320, 320)),
        ((2000, 2000), (320, 320)),
        ((400, 480), (288, 352)),  # 320 x 320 pixels of area: 350.5 x 292.1
        ((500, 1000), (256, 512)),  # 256 on the short side
        ((1000, 500), (512, 256)),
        ((400, 1600), (256, 1024)),
        ((200, 1600), (128, 1024)),  # the long side has reached its limit
        ((10, 20000), (64, 1024)),
    ],
)
def test_input_size_by_the_documented_rule(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert choose_input_size([size_hw]) == expected


@given(st.integers(4, 128), st.integers(1, 4))
def test_size_option_is_the_longer_side(strides: int, stretch: int) -> None:
    longer = STRIDE * strides
    h, w = choose_input_size([(300, 300 * stretch)], longer)
    assert w == longer
    assert abs(h - max(longer / stretch, MIN_INPUT_PX)) <= STRIDE / 2


def test_one_odd_image_does_not_change_the_input_size() -> None:
    usual = [(480, 640)] * 9
    assert choose_input_size([*usual, (100, 3000)]) == choose_input_size(usual)


def test_decoded_images_can_be_written_and_read_by_opencv_alone(tmp_path: Path) -> None:
    path = tmp_path / "ä b.png"
    path.write_bytes(cv2.imencode(".png", NOISE[..., ::-1])[1].tobytes())
    np.testing.assert_array_equal(read_image(path).pixels, NOISE)
