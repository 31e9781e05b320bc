"""When a file has arrived whole: what OpenCV writes is, and no shorter beginning of it."""

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspectad.end_mark import is_whole

MARKED = (".png", ".jpg", ".bmp", ".webp")
UNMARKED = (".tif", ".pgm", ".jp2")


def encode(suffix: str, seed: int = 0, hw: tuple[int, int] = (13, 17), options: tuple[int, ...] = ()) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*hw, 1 if suffix == ".pgm" else 3), np.uint8)
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


WHOLE = {
    **{suffix: encode(suffix) for suffix in MARKED},
    "progressive": encode(".jpg", 1, (40, 40), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
    "restarts": encode(".jpg", 2, (64, 64), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)),
    "large png": encode(".png", 3, (150, 150)),
    "lossless": encode(".webp", 4, (20, 20), (cv2.IMWRITE_WEBP_QUALITY, 101)),
}


def with_thumbnail(jpeg: bytes) -> bytes:
    """A JPEG with another one in its EXIF part, as cameras write it: two ends, of which the first is none."""
    payload = b"Exif\0\0" + encode(".jpg", 5, (8, 8))
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


WHOLE["thumbnail"] = with_thumbnail(WHOLE[".jpg"])


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_whole_with_and_without_padding(name: str) -> None:
    assert is_whole(WHOLE[name]) is True
    for padding in (b"\0", b"\0" * 511, b"\xff\xff", b"\n", b"\xff\xd9"):
        assert is_whole(WHOLE[name] + padding) is True


@pytest.mark.parametrize("name", WHOLE)
def test_no_shorter_beginning_is_whole(name: str) -> None:
    data = WHOLE[name]
    step = max(1, len(data) // 4000)
    for length in [*range(0, len(data), step), *range(max(0, len(data) - 64), len(data))]:
        assert is_whole(data[:length]) is False, length


@given(
    seed=st.integers(0, 2**32 - 1),
    hw=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    suffix=st.sampled_from(MARKED),
    share=st.floats(0, 1, exclude_max=True),
)
def test_any_image_is_whole_and_any_beginning_of_it_is_not(
    seed: int, hw: tuple[int, int], suffix: str, share: float
) -> None:
    data = encode(suffix, seed, hw)
    cut = int(share * len(data))
    assert is_whole(data) is True
    assert is_whole(data[:cut]) is False
    if suffix == ".jpg" or (suffix == ".png" and cut <= len(data) - 12):
        assert is_whole(data[:cut] + bytes(len(data) - cut)) is False  # a program reserved the space before it copies


@pytest.mark.parametrize("suffix", UNMARKED)
def test_formats_that_do_not_say_where_they_end(suffix: str) -> None:
    data = encode(suffix, hw=(80, 80))
    assert is_whole(data) is None
    assert is_whole(data[: len(data) // 2]) is None


def test_sizes_that_programs_fill_in_later() -> None:
    bmp, webp = WHOLE[".bmp"], WHOLE[".webp"]
    assert is_whole(bmp[:2] + bytes(4) + bmp[6:]) is None
    assert is_whole(webp[:4] + bytes(4) + webp[8:]) is False
    assert is_whole(b"RIFF\x04\0\0\0AVI ") is None


@given(st.binary(max_size=300), st.sampled_from([b"", *(WHOLE[s][:8] for s in MARKED)]))
def test_any_bytes_have_an_answer(data: bytes, start: bytes) -> None:
    assert is_whole(start + data) in (True, False, None)
