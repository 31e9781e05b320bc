"""PNG files of ours, read by two other decoders."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from inspectad.png import encode_png

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))


@given(hnp.arrays(np.uint8, SHAPES))
def test_other_decoders_get_the_pixels_back(image: np.ndarray) -> None:
    data = encode_png(image)
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), image)
    with Image.open(io.BytesIO(data)) as opened:
        opened.verify()  # checksums
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "PNG"
        assert np.array_equal(np.asarray(opened), image)


@pytest.mark.parametrize("seed", range(3))
def test_a_photograph_like_image_is_no_larger_than_by_libpng_at_its_fastest(seed: int) -> None:
    smooth = cv2.resize(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8), (640, 480))
    libpng = cv2.imencode(".png", smooth, [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, 32])[1]
    assert len(encode_png(smooth)) < 1.1 * len(libpng)


def test_views_that_are_not_contiguous_are_written_as_they_look() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)[::2, ::-1]
    assert np.array_equal(cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), cv2.IMREAD_COLOR_RGB), image)
