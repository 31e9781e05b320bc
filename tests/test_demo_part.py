"""The rendered part: repeatable, different from part to part, and changed by a defect only where the mask says."""

import cv2
import numpy as np
import pytest

from inspectad.demo_part import DEFECTS, HOLES, render_part

SEEDS = (0, 1, 7, 42)
EACH_DEFECT = pytest.mark.parametrize("defect", DEFECTS)


def change(seed: int, defect: str, size_hw: tuple[int, int] = (400, 480)) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) largest channel difference to the good part of the same seed, and (H, W) bool mask."""
    good, bad = render_part(seed, None, size_hw), render_part(seed, defect, size_hw)
    return np.abs(good.image.astype(int) - bad.image).max(axis=2), bad.mask > 0


def grown(mask: np.ndarray, px: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * px + 1, 2 * px + 1), np.uint8)) > 0


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_same_arguments_give_the_same_pixels(defect: str | None) -> None:
    first, second = render_part(3, defect), render_part(3, defect)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_parts_differ_in_brushing_and_not_only_in_exposure() -> None:
    faces = [render_part(seed).image[150:170, 100:380].astype(float).mean(axis=2) for seed in (0, 1)]
    streaks = [face - cv2.blur(face, (1, 15)) for face in faces]
    assert abs(np.corrcoef(streaks[0].ravel(), streaks[1].ravel())[0, 1]) < 0.2
    assert min(streak.std() for streak in streaks) > 1.5


def test_brushing_runs_along_the_plate() -> None:
    face = render_part(4).image[245:300, 130:270].astype(float).mean(axis=2)
    assert np.abs(np.diff(face, axis=0)).mean() > 1.5 * np.abs(np.diff(face, axis=1)).mean()


@EACH_DEFECT
def test_defect_traits_vary_with_the_seed(defect: str) -> None:
    masks = {render_part(seed, defect, (200, 240)).mask.tobytes() for seed in range(6)}
    assert len(masks) >= 3


@EACH_DEFECT
@pytest.mark.parametrize("seed", SEEDS)
def test_a_defect_changes_the_picture_inside_its_mask_and_nowhere_else(defect: str, seed: int) -> None:
    difference, mask = change(seed, defect)
    outside = difference[~grown(mask, 2)]
    assert outside.max() <= 1
    assert difference[mask].mean() > 4
    assert difference[mask].mean() > 100 * outside.mean()
    assert difference[mask].sum() > 0.97 * difference.sum()


@EACH_DEFECT
@pytest.mark.parametrize("seed", SEEDS)
def test_a_defect_stands_out_from_the_normal_variation_between_pixels(defect: str, seed: int) -> None:
    difference, mask = change(seed, defect)
    plain = render_part(seed).image[245:300, 130:270].astype(float).mean(axis=2)  # brushed face, nothing on it
    assert np.percentile(difference[mask], 95) > 1.5 * plain.std()


def test_a_good_part_has_an_empty_mask() -> None:
    assert not render_part(5).mask.any()


@pytest.mark.parametrize(
    ("defect", "least_px", "most_px"),
    [("scratch", 60, 1000), ("dent", 400, 3400), ("stain", 120, 2600), ("missing_hole", 300, 2400)],
)
def test_masks_have_the_size_of_the_defect_and_lie_on_the_plate(defect: str, least_px: int, most_px: int) -> None:
    for seed in range(8):
        mask = render_part(seed, defect).mask
        assert set(np.unique(mask)) == {0, 255}
        assert least_px <= np.count_nonzero(mask) <= most_px
        rows, columns = np.nonzero(mask)
        assert rows.min() > 40
        assert rows.max() < 360
        assert columns.min() > 45
        assert columns.max() < 435


def test_a_missing_hole_is_metal_where_the_good_part_is_dark() -> None:
    for seed in SEEDS:
        good, bad = render_part(seed), render_part(seed, "missing_hole")
        centre = tuple(np.argwhere(bad.mask).mean(axis=0).round().astype(int))
        assert good.image[centre].max() < 50
        assert bad.image[centre].min() > 90
        nearest = min(np.hypot(x + 239.5 - centre[1], y + 199.5 - centre[0]) for x, y, _, _ in HOLES)
        assert nearest < 9  # pose: 3 px each way, and 1 degree


@EACH_DEFECT
@pytest.mark.parametrize("size_hw", [(96, 96), (150, 400), (401, 333)])
def test_any_size_is_honoured_and_keeps_a_visible_defect(defect: str, size_hw: tuple[int, int]) -> None:
    part = render_part(2, defect, size_hw)
    assert (part.image.shape, part.image.dtype) == ((*size_hw, 3), np.uint8)
    assert (part.mask.shape, part.mask.dtype) == (size_hw, np.uint8)
    difference, mask = change(2, defect, size_hw)
    assert difference[mask].max() > 10
    assert difference[~grown(mask, 2)].max() <= 1


def test_exposure_stays_in_range_from_part_to_part() -> None:
    faces = [render_part(seed, None, (200, 240)).image[90:160, 30:150].mean() for seed in range(12)]
    assert 100 < min(faces) < max(faces) < 200
    assert 0.01 < (max(faces) - min(faces)) / np.mean(faces) < 0.12


@pytest.mark.parametrize(
    ("defect", "size_hw", "message"),
    [
        ("rust", (400, 480), "rust.*scratch"),
        ("", (400, 480), "unknown defect"),
        (None, (95, 480), "at least 96"),
        ("dent", (400, 0), "at least 96"),
    ],
)
def test_what_cannot_be_rendered_is_refused(defect: str | None, size_hw: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_part(0, defect, size_hw)
