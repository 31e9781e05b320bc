"""Regions against SciPy's labelling, and overlays: one fixed scale, nothing drawn where nothing is wrong."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from inspectad.heatmap import MAX_BOXES, find_regions, region_level, render_overlay
from inspectad.records import Verdict

QUICK = settings(deadline=None, max_examples=80)
LEVEL = 2.0
MAPS = arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0.0, 2.0, 3.0]))
BACKGROUND = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def labelled_boxes(above: np.ndarray) -> dict[tuple[int, int, int, int], int]:
    """(x, y, width, height) of each 8-connected region to its area, by SciPy. Boxes of two regions may be equal."""
    labels, _ = ndimage.label(above, structure=np.ones((3, 3)))
    found = {}
    for i, (rows, columns) in enumerate(ndimage.find_objects(labels)):
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        found[(*box, i)] = int((labels == i + 1).sum())
    return found


def as_tuples(regions) -> list[tuple[int, int, int, int]]:
    return [(b.x, b.y, b.width, b.height) for b in regions.boxes]


@QUICK
@given(MAPS, st.integers(1, 5), st.integers(1, 5))
def test_regions_are_those_that_scipy_finds_in_the_enlarged_map(values: np.ndarray, by_y: int, by_x: int) -> None:
    enlarged = np.kron(values, np.ones((by_y, by_x)))
    expected = labelled_boxes(enlarged > LEVEL)
    regions = find_regions(values, LEVEL, enlarged.shape)
    assert regions.area_px == np.count_nonzero(enlarged > LEVEL)
    assert regions.level == LEVEL
    if len(expected) <= MAX_BOXES:
        assert sorted(as_tuples(regions)) == sorted(box[:4] for box in expected)


@QUICK
@given(MAPS)
def test_boxes_come_largest_area_first(values: np.ndarray) -> None:
    expected = labelled_boxes(values > LEVEL)
    areas: dict[tuple[int, ...], list[int]] = {}
    for box, area in expected.items():
        areas.setdefault(box[:4], []).append(area)
    boxes = as_tuples(find_regions(values, LEVEL, values.shape))
    largest_first = sorted(expected.values(), reverse=True)[:MAX_BOXES]
    assert len(boxes) == len(largest_first)
    assert all(area in areas[box] for box, area in zip(boxes, largest_first, strict=True))


def test_of_many_regions_the_largest_are_boxed_and_all_are_counted() -> None:
    values = np.zeros((60, 60), np.float32)
    values[::4, ::4] = 9.0  # 225 single pixels
    values[40:42, 41:43] = 9.0  # grows the one at (40, 40) to five
    regions = find_regions(values, 1.0, (60, 60))
    assert len(regions.boxes) == MAX_BOXES
    assert as_tuples(regions)[0] == (40, 40, 3, 2)
    assert regions.area_px == np.count_nonzero(values > 1.0)


@settings(QUICK, max_examples=200)
@given(
    st.integers(1, 70).map(lambda n: 16 * n),
    st.integers(1, 3000),
    st.data(),
)
def test_a_box_covers_its_region_by_less_than_a_pixel_and_stays_inside_the_image(
    map_w: int, source_w: int, data: st.DataObject
) -> None:
    left = data.draw(st.integers(0, map_w - 1))
    right = data.draw(st.integers(left + 1, map_w))
    values = np.zeros((1, map_w), np.float32)
    values[0, left:right] = 1.0
    (box,) = find_regions(values, 0.5, (5, source_w)).boxes
    # In whole numbers, so that no rounding enters: left * source_w / map_w <= ... <= right * source_w / map_w.
    assert left * source_w - map_w < box.x * map_w <= left * source_w
    assert right * source_w <= (box.x + box.width) * map_w < right * source_w + map_w
    assert box.x >= 0
    assert box.x + box.width <= source_w


def test_a_box_at_the_right_edge_of_a_450_px_image_ends_at_450() -> None:
    values = np.ones((112, 112), np.float32)  # 112 * (450 / 112) is more than 450 in floating point
    (box,) = find_regions(values, 0.5, (450, 450)).boxes
    assert (box.x, box.y, box.width, box.height) == (0, 0, 450, 450)


@QUICK
@given(MAPS, st.integers(1, 60), st.integers(1, 60))
def test_the_peak_lies_in_the_cell_of_the_highest_value(values: np.ndarray, height: int, width: int) -> None:
    x, y = find_regions(values, LEVEL, (height, width)).peak_xy
    assert 0 <= x < width
    assert 0 <= y < height
    rows, columns = values.shape
    # The map cells that the source pixel overlaps; with a source as large as the map or larger, one or two.
    cells = values[
        y * rows // height : -(-(y + 1) * rows // height), x * columns // width : -(-(x + 1) * columns // width)
    ]
    assert cells.max() == values.max()


def test_the_peak_is_in_the_middle_of_its_enlarged_cell() -> None:
    values = np.zeros((10, 20), np.float32)
    values[3, 7] = 1.0
    assert find_regions(values, 2.0, (90, 180)).peak_xy == (7 * 9 + 4, 3 * 9 + 4)


def test_a_map_below_the_level_has_no_regions() -> None:
    regions = find_regions(np.full((8, 8), 2.0, np.float32), 2.0, (80, 80))  # "above" is strict
    assert (regions.area_px, regions.boxes) == (0, ())


@pytest.mark.parametrize(
    ("peak", "verdict", "level"),
    [
        (3.0, Verdict.NG, 2.0),  # above the map threshold: cut there
        (3.0, Verdict.OK, 2.0),
        (1.5, Verdict.NG, 1.0),  # NG, but only the image threshold shows where
        (2.0, Verdict.NG, 1.0),  # regions are strictly above their level
        (1.5, Verdict.OK, 2.0),  # OK: nothing is to be shown
        (0.5, Verdict.OK, 2.0),
    ],
)
def test_regions_of_an_image_are_cut_at_the_right_level(peak: float, verdict: Verdict, level: float) -> None:
    assert region_level(peak, verdict, threshold=1.0, map_threshold=2.0) == level


def test_an_ng_image_of_a_small_model_has_a_region() -> None:
    # With an input of 64 x 64 px the score is the highest of 8 x 8 distances; the enlarged map stays below it.
    coarse = torch.zeros(1, 1, 8, 8)
    coarse[0, 0, 3, 4] = 1.0
    score = float(coarse.max())
    enlarged = F.interpolate(coarse, (64, 64), mode="bilinear", align_corners=False)[0, 0].numpy()
    threshold = 0.99 * score
    level = region_level(float(enlarged.max()), Verdict.NG, threshold, 1.1 * threshold)
    assert find_regions(enlarged, level, (64, 64)).area_px > 0


def overlay(values: np.ndarray, image: np.ndarray = BACKGROUND, level: float = LEVEL, verdict: str = "OK"):
    return render_overlay(image, values, level, f"{verdict}  score 1.234  threshold 2", Verdict(verdict))


def below_caption(picture: np.ndarray) -> np.ndarray:
    return picture[picture.shape[0] // 3 + 1 :]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.84])
def test_a_calm_image_looks_like_itself(share: float) -> None:
    picture = overlay(np.full((96, 128), share * LEVEL, np.float32))
    np.testing.assert_array_equal(below_caption(picture), below_caption(BACKGROUND))


@pytest.mark.parametrize("verdict", ["OK", "NG"])
def test_the_caption_is_a_band_in_the_colour_of_the_verdict(verdict: str) -> None:
    picture = overlay(np.zeros((96, 128), np.float32), verdict=verdict)
    assert tuple(picture[0, 0]) == {"OK": (0, 100, 40), "NG": (176, 0, 0)}[verdict]
    assert (picture[:30] == 255).all(axis=2).any()  # white letters


def test_the_source_image_is_not_changed() -> None:
    image = BACKGROUND.copy()
    overlay(np.full((96, 128), 9.0, np.float32), image)
    np.testing.assert_array_equal(image, BACKGROUND)


def blob(peak: float, x: float, y: float, shape_hw: tuple[int, int] = (60, 80)) -> np.ndarray:
    rows, columns = np.mgrid[: shape_hw[0], : shape_hw[1]]
    return (peak * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 50)).astype(np.float32)


def test_colours_depend_on_the_map_in_units_of_the_level_only() -> None:
    values = blob(5.0, 40, 40)
    np.testing.assert_array_equal(overlay(values), overlay(values * 8, level=LEVEL * 8))


def test_a_hot_spot_elsewhere_changes_no_colour_here() -> None:
    alone, together = overlay(blob(3.0, 60, 40)), overlay(blob(3.0, 60, 40) + blob(50.0, 12, 40))
    np.testing.assert_array_equal(together[81:, 160:], alone[81:, 160:])
    assert not np.array_equal(alone[81:, 160:], BACKGROUND[81:, 160:])


@pytest.mark.parametrize("source_hw", [(233, 311), (1500, 1100), (62, 83)])
def test_a_hot_spot_elsewhere_changes_no_colour_here_at_any_source_size(source_hw: tuple[int, int]) -> None:
    grey = np.full((*source_hw, 3), 128, np.uint8)
    alone, together = overlay(blob(3.0, 60, 40), grey), overlay(blob(3.0, 60, 40) + blob(50.0, 12, 40), grey)
    middle, lower = source_hw[1] // 2, source_hw[0] // 3 + 2
    difference = np.abs(alone[lower:, middle:].astype(int) - together[lower:, middle:])
    assert difference.max() <= 16  # where colours start may be rounded otherwise; the scale may not move


def test_the_scale_goes_from_yellow_at_the_level_to_dark_red_at_twice_the_level_and_ends_there() -> None:
    grey = np.full((300, 300, 3), 128, np.uint8)
    at_level, at_twice, beyond = (
        overlay(np.full((50, 50), share * LEVEL, np.float32), grey)[200, 150].astype(int) for share in (1.0, 2.0, 9.0)
    )
    assert at_level[0] > at_level[2] + 30 < at_level[1]  # yellow: red and green, little blue
    assert at_twice[0] > at_twice[1] + 50
    assert at_twice[0] > at_twice[2] + 50
    assert at_twice.sum() < at_level.sum()
    np.testing.assert_array_equal(at_twice, beyond)


def test_the_overlay_lies_where_the_map_is_high() -> None:
    grey = np.full((233, 311, 3), 128, np.uint8)
    values = blob(6.0, 60, 40)
    changed = (overlay(values, grey) != grey).any(axis=2)
    changed[: 233 // 3 + 1] = False
    enlarged, around = (
        cv2.resize(v, (311, 233), interpolation=cv2.INTER_LINEAR) for v in (values, ndimage.maximum_filter(values, 3))
    )
    assert changed[enlarged > LEVEL].all()
    assert not changed[around < 0.8 * LEVEL].any()  # colours fade out within one map pixel


def test_contours_run_around_what_is_above_the_level() -> None:
    black = np.zeros((240, 320, 3), np.uint8)
    above = np.zeros((240, 320), bool)
    above[120:170, 200:260] = above[200:230, 30:45] = True
    picture = overlay(np.where(above, 2 * LEVEL, 0.0).astype(np.float32), black)
    contour = picture[..., 0] > 120  # on black, the colour scale stays below 110
    contour[: 240 // 3 + 1] = False
    edge = above & ~ndimage.binary_erosion(above)
    distance_to_edge = ndimage.distance_transform_edt(~edge)
    distance_to_contour = ndimage.distance_transform_edt(~contour)
    assert distance_to_edge[contour].max() <= 2
    assert distance_to_contour[edge].max() <= 2


def test_contours_of_a_large_source_fit_its_enlarged_map() -> None:
    values = blob(6.0, 60, 40)
    black = np.zeros((1500, 2000, 3), np.uint8)
    picture = overlay(values, black)
    contour = (picture == (220, 0, 0)).all(axis=2)
    enlarged = cv2.resize(values, (2000, 1500), interpolation=cv2.INTER_LINEAR) > LEVEL
    edge = enlarged & ~ndimage.binary_erosion(enlarged)
    assert ndimage.distance_transform_edt(~edge)[contour].max() <= 8
    assert ndimage.distance_transform_edt(~contour)[edge].max() <= 8


def test_a_small_region_of_a_large_image_stays_visible_within_a_frame() -> None:
    """As of tiles: the map has many places, and a line thick enough for the whole image would cover the region."""
    values = np.zeros((500, 500), np.float32)
    values[300:303, 200:230] = 1.3 * LEVEL
    picture = overlay(values, np.zeros((4000, 4000, 3), np.uint8))
    region = picture[2408:2416, 1612:1828]
    assert ((region != 0).any(axis=2) & (region != (220, 0, 0)).any(axis=2)).mean() > 0.8  # colours, no line
    line = (picture == (220, 0, 0)).all(axis=2)
    assert not line[1500:2350].any()
    framed = np.flatnonzero(line.any(axis=1) & (np.arange(4000) > 1500))
    assert 2350 < framed[0] < 2380
    assert 2440 < framed[-1] < 2475


@settings(QUICK, max_examples=60)
@given(st.integers(1, 260), st.integers(1, 260), MAPS, st.sampled_from(["OK", "NG"]))
@example(1, 1, np.full((4, 4), 9.0, np.float32), "NG")
@example(3, 200, np.full((4, 4), 9.0, np.float32), "NG")
@example(200, 3, np.full((4, 4), 9.0, np.float32), "NG")
@example(200, 4, np.full((4, 4), 9.0, np.float32), "NG")
def test_an_overlay_has_the_size_of_its_source_however_small(
    height: int, width: int, values: np.ndarray, verdict: str
) -> None:
    grey = np.full((height, width, 3), 128, np.uint8)
    picture = overlay(values, grey, verdict=verdict)
    assert (picture.shape, picture.dtype) == (grey.shape, np.uint8)
    if values.max() > 1.5 * LEVEL == 3.0 > LEVEL and values.min() > LEVEL:
        assert (picture != grey).any()


def test_without_a_caption_a_calm_image_looks_like_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    calm = np.full((30, 40), 0.5, np.float32)
    assert np.array_equal(render_overlay(image, calm, 1.0, "", Verdict.OK), image)
    assert not np.array_equal(render_overlay(image, calm, 1.0, "OK 0.5", Verdict.OK), image)
