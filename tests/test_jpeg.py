"""Large JPEG files are decoded smaller: how much, that their size is known all the same, and what it changes."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inspectad.detector import OnnxDetector
from inspectad.errors import UnreadableImageError
from inspectad.images import load_image, resize
from inspectad.jpeg import jpeg_reduction, jpeg_size
from inspectad.records import Inspection, Verdict
from inspectad.scan import ScanConfig, scan


def scene(height: int, width: int) -> np.ndarray:
    """Smooth shapes with some noise, as a camera gives."""
    rng = np.random.default_rng(height * 7919 + width)
    coarse = rng.integers(40, 216, (9, 12, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, orientation: int = 1, **options: object) -> bytes:
    pil = Image.fromarray(image)
    exif = pil.getexif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    pil.save(stream, "JPEG", quality=92, exif=exif, **options)
    return stream.getvalue()


@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.sampled_from(["RGB", "L", "CMYK"]))
def test_the_size_is_read_off_the_header_of_every_kind(height: int, width: int, progressive: bool, mode: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, "JPEG", progressive=progressive)
    assert jpeg_size(stream.getvalue()) == (height, width)


def test_the_size_is_the_image_s_and_not_its_thumbnail_s() -> None:
    small = jpeg(scene(30, 40))
    big = jpeg(scene(300, 400))
    thumbnail = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    assert jpeg_size(big[:2] + thumbnail + big[2:]) == (300, 400)


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_mark_of_a_jpeg_are_borne(junk: bytes) -> None:
    size = jpeg_size(b"\xff\xd8\xff" + junk)
    assert size is None or all(0 <= side < 65536 for side in size)


@pytest.mark.parametrize(
    ("size", "input_size", "expected"),
    [
        ((639, 640), (160, 160), 1),
        ((640, 640), (160, 160), 2),
        ((1278, 1280), (160, 160), 2),
        ((1279, 1280), (160, 160), 1),  # both sides would be 640: which way is it turned?
        ((1280, 1280), (160, 160), 4),
        ((2560, 2560), (160, 160), 8),
        ((1280, 640), (160, 160), 2),
        ((640, 1280), (320, 160), 2),  # as a camera held upright stores it: EXIF will turn it
    ],
)
def test_what_is_decoded_stays_twice_the_input_at_least(
    size: tuple[int, int], input_size: tuple[int, int], expected: int
) -> None:
    assert jpeg_reduction(jpeg(np.zeros((*size, 3), np.uint8)), input_size) == expected


@pytest.mark.parametrize("size", [(1284, 1281), (1281, 1284)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_sides_that_would_be_equal_when_rounded_do_not_lose_which_is_which(
    size: tuple[int, int], orientation: int
) -> None:
    loaded = load_image(jpeg(scene(*size), orientation), (160, 160), 255)
    assert loaded.size_hw == (size if orientation == 1 else size[::-1])


def test_other_formats_are_never_decoded_smaller() -> None:
    image = np.zeros((2000, 2000, 3), np.uint8)
    for suffix in (".png", ".bmp", ".webp", ".tiff"):
        assert jpeg_reduction(cv2.imencode(suffix, image)[1].tobytes(), (64, 64)) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_image_is_the_full_one_but_for_rounding_however_it_is_turned(orientation: int) -> None:
    data = jpeg(scene(901, 1203), orientation)
    loaded = load_image(data, (160, 208), 255)
    assert loaded.source is None
    with Image.open(io.BytesIO(data)) as opened:
        from PIL import ImageOps

        full = np.asarray(ImageOps.exif_transpose(opened))
    assert loaded.size_hw == full.shape[:2]
    apart = np.abs(loaded.pixels.astype(int) - resize(full, (160, 208)))
    assert apart.mean() < 0.5
    assert apart.max() <= 6


def test_a_small_image_is_loaded_as_before() -> None:
    data = jpeg(scene(300, 400))
    loaded = load_image(data, (160, 208), 255)
    with Image.open(io.BytesIO(data)) as opened:
        full = np.asarray(opened)
    assert loaded.source is not None
    assert np.abs(loaded.source.astype(int) - full).max() <= 1
    assert np.array_equal(loaded.pixels, resize(loaded.source, (160, 208)))


@pytest.mark.parametrize("cut", [2, 50, 5000])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_file_is_refused_at_every_reduction(cut: int, progressive: bool) -> None:
    data = jpeg(scene(1300, 1300), progressive=progressive)[:-cut]
    for side in (300, 150, 80):
        assert jpeg_reduction(data, (side, side)) > 1
        with pytest.raises(UnreadableImageError, match="truncated"):
            load_image(data, (side, side), 255)


def test_a_scan_s_score_does_not_depend_on_heatmaps_which_have_the_size_of_the_file(trained, tmp_path) -> None:
    detector = OnnxDetector.load(trained.model, "cpu", threads=1)
    height, width = (4 * side + 3 for side in detector.input_size_hw)
    part = cv2.resize(cv2.imread(str(trained.good / "good_0.png")), (width, height), interpolation=cv2.INTER_CUBIC)
    folder = tmp_path / "line"
    folder.mkdir()
    (folder / "part.jpg").write_bytes(jpeg(part[..., ::-1], orientation=6))  # upright it is width x height turned
    rows: dict[str, Inspection] = {}
    for kind in ("", "all"):
        config = ScanConfig(images=(str(folder),), output=tmp_path / f"out{kind}", heatmaps=kind)
        scan(config, detector, on_row=lambda row, kind=kind: rows.update({kind: row}))
    assert dataclasses.replace(rows[""], elapsed_ms=0) == dataclasses.replace(rows["all"], elapsed_ms=0)
    assert rows["all"].score is not None
    assert cv2.imread(str(tmp_path / "outall" / "heatmaps" / "part.jpg.png")).shape == (width, height, 3)
    data = (folder / "part.jpg").read_bytes()
    expected = detector.predict_resized(load_image(data, detector.input_size_hw, 255).pixels[None]).image_scores[0]
    assert rows[""].score == pytest.approx(float(expected), rel=1e-5)


def test_what_only_fails_when_all_of_it_is_decoded_is_unreadable_not_ok(trained, tmp_path, monkeypatch) -> None:
    detector = OnnxDetector.load(trained.model, "cpu", threads=1)
    folder = tmp_path / "line"
    folder.mkdir()
    (folder / "part.jpg").write_bytes(jpeg(scene(4 * detector.input_size_hw[0], 4 * detector.input_size_hw[1])))

    def no_memory(data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr("inspectad.pipeline.decode_image", no_memory)
    rows: list[Inspection] = []
    config = ScanConfig(images=(str(folder),), output=tmp_path / "out", heatmaps="all")
    scan(config, detector, on_row=rows.append)
    assert [row.verdict for row in rows] == [Verdict.UNREADABLE]
    assert "too large" in rows[0].error
